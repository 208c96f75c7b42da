"""The command line: the commands of all stages as one, and the exit codes.

Commands are defined in their stage's ``commands``; this module turns errors into one line and an exit code.
``dptr --help`` is fast because commands import heavy libraries when they run.
"""

import os
import select
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import Abort, Exit, TyperException
from typer.main import get_command

from dptr import __version__
from dptr.cache import commands as stored
from dptr.cache.command_line import (
    Report,
    command,
    command_group,
    open_missing_streams,
    require_no_empty_argument,
    speak_utf8,
)
from dptr.cache.errors import (
    OF_THE_DISK,
    DptrError,
    disk_error,
    disk_problem,
    is_out_of_memory,
    usage_problem,
)
from dptr.cache.options import WORKSPACE
from dptr.cache.printing import visible, without_credentials
from dptr.cache.processes import ignore_from_now_on, start_no_more_threads_than_usable, stop_once
from dptr.pipeline import commands as stage_one
from dptr.trainer.commands import recognition, training

_INTERRUPTED = 130
#: Exit code when the reader of a pipe ends first, as in `| head -1`: that of the signal SIGPIPE.
_READER_ENDED = 141

app = command_group("Read word images; fine-tune and pre-train scene-text recognisers.")
for _stage in (recognition, training, stage_one, stored):
    app.add_typer(_stage.commands)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dptr {__version__}")
        raise Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-v", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Options of dptr itself."""


@command(app, "demo", "Get started")
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything the demo makes.")] = Path("dptr_demo"),
) -> Report[None]:
    """Run every stage on small data (minutes on a laptop).

    Example: dptr demo
    """
    import time

    from dptr.cache.progress import note
    from dptr.pipeline.rendering.demo_data import prepare_demo_data
    from dptr.trainer.evaluate import figures

    started = time.monotonic()
    root = out / WORKSPACE
    data = prepare_demo_data(out)
    note("\n1/5  text to CLIP embeddings")
    store = stage_one.embed_text(data.corpus, workspace=root, charset="36")
    note("\n2/5  photos to noise")
    bank = stage_one.build_orp_bank(data.photos, workspace=root, crops_per_image=40)
    note("\n3/5  pre-training the decoder on text embeddings")
    decoder = training.pretrain("demo", workspace=root)
    note("\n4/5  fine-tuning on rendered crops, from the encoder of the bundled recogniser")
    run = training.finetune(data.crops, workspace=root, recipe="demo", encoder="bundled").out
    note("\n5/5  reading held-out crops")
    evaluated = recognition.evaluate([str(run), str(data.test_crops)], workspace=root)
    page = recognition.evaluate([str(data.page)], workspace=root)
    metrics = {**decoder.metrics, **figures(evaluated)["metrics"]}
    seconds = time.monotonic() - started
    lines = [
        recognition.examples_table(run, data.test_crops),
        "",
        f"word accuracy on {evaluated.words} rendered crops of words in training, the crops themselves unseen: "
        f"{evaluated.weighted['36']:.1%}",
        f"accuracy on text embeddings of validation words after pre-training: {decoder.metrics['accuracy']:.1%}",
        "The bundled CLIP is small and the crops are rendered: this shows that every stage works, not how well.",
        f"The bundled recogniser, trained for hours, on {page.words} words of a photographed page: "
        f"{page.weighted['36']:.1%}",
        "",
        f"prompt store  {store.folder}",
        f"ORP bank      {bank.folder}",
        f"recogniser    {run}",
        f'Query the store:  dptr sql --workspace {root} "select label, n_tokens from prompts limit 5"',
        f"Read a crop:      dptr read {run} {data.test_crops}",
        f"{seconds:.0f} seconds in all",
    ]
    counts = {"rows": evaluated.words, "computed": evaluated.words, "quarantined": evaluated.quarantined}
    return Report({"out": str(out), **counts, "metrics": metrics, "seconds": seconds}, "\n".join(lines))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the error class's exit code."""
    # Before a command imports torch, which reads this once.
    start_no_more_threads_than_usable()
    # Pillow warns about pictures without naming them; the reasons of rejected pictures are reported instead.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    open_missing_streams()
    code = run_command(arguments, ending=True)
    ignore_from_now_on()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = code or _READER_ENDED
        # Python flushes again at exit, and would print that this failed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run_command(arguments: Sequence[str] | None = None, ending: bool = False) -> int:
    """Run one command and return its exit code; errors are printed on stderr as one line."""
    speak_utf8()
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # An error may come before the option is parsed.
    debug = bool(os.environ.get("DPTR_DEBUG")) or "--debug" in given
    try:
        require_no_empty_argument(given)
        # typer turns Ctrl-C and --help into exit codes of its own, and hands them back.
        with stop_once(ending):
            code = get_command(app).main(args=given, standalone_mode=False)
        return _fail(KeyboardInterrupt(), debug) if code == _INTERRUPTED else int(code or 0)
    except Exit as error:
        return error.exit_code
    except SystemExit as error:  # typer ends completion so, and every broken pipe
        if _reader_has_ended() or _raised_by_rich(error):
            return _READER_ENDED
        return _fail(error.__context__, debug) if isinstance(error.__context__, Exception) else int(error.code or 0)
    except (Exception, KeyboardInterrupt) as error:
        return _fail(error, debug)


def _reader_has_ended() -> bool:
    """Return whether stdout or stderr is a pipe without a reader."""
    pipes = select.poll()
    for number in (1, 2):
        pipes.register(number, 0)
    return any(event & select.POLLERR for _, event in pipes.poll(0))


def _raised_by_rich(error: SystemExit) -> bool:
    """Return whether rich, which prints help texts, found the pipe without a reader: it has closed stdout then."""
    return any(frame.f_code.co_name == "on_broken_pipe" for frame, _ in traceback.walk_tb(error.__traceback__))


def _fail(error: BaseException, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    code, message = _explained(error)
    print("error: " + visible(without_credentials(" ".join(message.split()))), file=sys.stderr)
    return code


def _explained(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the message of an exception."""
    match error:
        case DptrError():
            return error.exit_code, str(error)
        case TyperException():
            return 2, usage_problem(error)
        case KeyboardInterrupt() | Abort():
            return _INTERRUPTED, "interrupted; rerun the command to resume"
        case Exception() if is_out_of_memory(error):
            return 1, f"out of memory ({error or 'allocation failed'}). Use a smaller batch or shard, or fewer workers"
        case UnicodeEncodeError(reason="surrogates not allowed"):
            return 2, f"{error.object[max(error.start - 80, 0) : error.end + 80]!r} is not UTF-8. Use another name"
        case Exception() if (disk := disk_error(error)) and disk.errno:
            return 2, f"{disk_problem(disk)}. {OF_THE_DISK[disk.errno]}"
    unexpected = f"unexpected {type(error).__name__}: {error}"
    return 1, f"{unexpected}. Please report it; --debug shows where it happened"
