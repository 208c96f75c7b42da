"""Commands that use a run: read, measure, show, export and upload it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dptr.cache.command_line import Report, command, command_group
from dptr.cache.errors import UserError
from dptr.cache.file_names import LABELS_FILE, REPORT_FILE
from dptr.cache.options import WORKSPACE, Device, OrpFolder, PromptsFolder, WorkspaceFolder
from dptr.cache.progress import note
from dptr.cache.stores.files import require_replaceable
from dptr.cache.workspace import Workspace
from dptr.pipeline.options import resolve_device
from dptr.trainer.choices import Protocol
from dptr.trainer.commands.options import (
    Arithmetic,
    Data,
    LexiconFile,
    OutFile,
    crops_for,
    labels_left_out,
    named_data,
)
from dptr.trainer.named_models import NEWEST, kept_in, name_of, newest_run, recogniser_first

if TYPE_CHECKING:
    from dptr.trainer.evaluate import Evaluation
import time

from dptr.trainer.choices import ExportTarget
from dptr.trainer.named_models import model_at, model_path

_EXAMPLES = 12

commands = command_group()


@command(commands, "evaluate", "Read")
def evaluate(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN] DATA", help="A model (default: bundled), then labelled crops."),
    ] = None,
    *,
    workspace: WorkspaceFolder = WORKSPACE,
    protocol: Annotated[
        Protocol, typer.Option(help="field: 36, 62 and 94 characters; chinese: NFKC, case-insensitive, simplified.")
    ] = "field",
    single_view: Annotated[
        bool,
        typer.Option("--single-view", help="One forward pass per crop, as published tables use."),
    ] = False,
    lexicon: LexiconFile = None,
    clip: Annotated[
        str | None, typer.Option(help="Measure this CLIP's text retrieval instead of a recogniser.")
    ] = None,
    precision: Arithmetic = "auto",
    device: Device = "auto",
) -> "Report[Evaluation]":
    """Measure word accuracy and 1-NED on labelled crops.

    Example: dptr evaluate newest crops/
    """
    from dptr.cache.crops.dataset import WordImages
    from dptr.trainer import evaluate as stage
    from dptr.trainer.evaluate import figures, table
    from dptr.trainer.read import load_reader

    if clip is not None:
        return _nearest_words(clip, named_data(names), lexicon, resolve_device(device))
    place = Workspace.at(workspace)
    run, more = recogniser_first(place, names or [])
    paths = named_data(more)
    chosen = resolve_device(device)
    reader = load_reader(run, chosen, lexicon, precision)
    sets = {str(path): WordImages.open_as_written([path]) for path in paths}
    result = stage.evaluate(reader.recognizer, sets, chosen, protocol, single_view)
    left_out = [line for images in sets.values() for line in labels_left_out(images)]
    if lexicon is None and not single_view:
        _keep(place, run, result)
    else:
        note("these options differ from the defaults, so predictions are not saved for `dptr sql` and `dptr push`")
    looks = "single view" if single_view else "several views of tall and low-confidence crops"
    model = name_of(run)
    found = {"out": str(run), "model": model, "single_view": single_view, **figures(result)}
    return Report(found, "\n".join([f"model: {model}", table(result), looks, *left_out]), lambda: result)


def _nearest_words(clip: str, data: list[Path], lexicon: str | None, device: str) -> Report[Any]:
    """Compare a CLIP's image embeddings of crops with its text embeddings of their labels and of ``lexicon``."""
    from dptr.cache.crops.dataset import WordImages
    from dptr.cache.text.lexicon import read_word_counts
    from dptr.trainer.nearest_words import nearest_words

    sets = {str(path): WordImages.open_as_written([path]) for path in data}
    words = read_word_counts(Path(lexicon)) if lexicon not in (None, "none") else ()
    result = nearest_words(clip, sets, words, device)
    return Report({"out": clip, **result.figures()}, result.table())


def _keep(workspace: Workspace, run: Path, result: "Evaluation") -> None:
    """Save predictions with the run, for ``dptr sql``; print a note if they cannot be written."""
    from dptr.trainer.evaluate import keep_predictions
    from dptr.trainer.training.runs import Run

    folder, step = kept_in(workspace, run), None if run.is_file() else Run.load(run).step()
    try:
        for name, read in result.read.items():
            keep_predictions(folder, name, read, step)
    except OSError as error:
        note(f"predictions are not saved for `dptr sql`: {error}")


@command(commands, "read", "Read")
def read(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] IMAGE",
            help="A model (default: bundled), then images of one word, folders, or - for names on stdin.",
        ),
    ],
    *,
    workspace: WorkspaceFolder = WORKSPACE,
    boxes: Annotated[Path | None, typer.Option(help="Word boxes of IMAGE, a whole page: JSON or ICDAR lines.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write predictions to a .csv, .jsonl or .parquet file.")
    ] = None,
    lexicon: LexiconFile = None,
    batch_size: Annotated[int | None, typer.Option(min=1, max=4096, help="Images per batch.")] = None,
    precision: Arithmetic = "auto",
    device: Device = "auto",
) -> Report[None]:
    """Read word images.

    An image that cannot be read gets a line on stderr, and the command exits with 4.

    Example: dptr read sign.png
    """
    from dptr.trainer import read_files as stage
    from dptr.trainer.read import PictureFiles, load_reader

    if out is not None:
        stage.require_form(out)
        require_replaceable(out)
    started = time.monotonic()
    run, images = recogniser_first(Workspace.at(workspace), names)
    if boxes is not None and (len(images) != 1 or not Path(images[0]).is_file()):
        raise UserError("--boxes is for the words of one page", "Name one image")
    reader = load_reader(run, device, lexicon, precision)
    loaded = time.monotonic()
    files = PictureFiles(Path(name) for name in _names(images))
    sources = stage.pictures(files) if boxes is None else stage.words_of_page(Path(images[0]), boxes)
    if "-" in images:
        batch_size = batch_size or 1  # each prediction is printed before the next name is read
    report: Report[None] = Report({"out": str(out or run), "rows": 0})

    def rows() -> Iterator[tuple[dict[str, Any], str]]:
        used, read = time.process_time(), 0
        for row in stage.read_rows(reader, sources, report.problems, batch_size):
            read += 1
            yield row, _shown(row)
        passed_over = files.passed_over
        if passed_over:
            kinds = ", ".join(f"{count:,} {ending}" for ending, count in passed_over.most_common())
            note(f"skipped {passed_over.total():,} files that are not images: {kinds}")
        counts = {"rows": read, "computed": read, "quarantined": len(report.problems)}
        seconds, each = time.monotonic() - loaded, 1000 * (time.process_time() - used) / read
        report.figures |= {**counts, "passed_over": passed_over.total(), "seconds": seconds}
        report.figures |= {"load_seconds": loaded - started, "core_milliseconds": each}
        note(f"{read:,} read in {seconds:.1f} s, {each:.1f} ms of one core each")

    if out is None:
        report.rows = rows()
        return report
    stage.write_rows(out, (row for row, _ in rows()))
    report.text = f"{report.figures['rows']:,} predictions in {out}"
    return report


def _shown(row: dict[str, Any]) -> str:
    place = row["image"] if "box" not in row else f"{row['image']}:{row['box']}"
    return f"{place}\t{row['text']}\t{row['confidence']:.3f}"


def _names(images: list[str]) -> Iterator[str]:
    """Yield names of pictures and folders; those on stdin one by one."""
    for image in images:
        if image == "-":
            yield from filter(None, (line.rstrip("\r\n") for line in sys.stdin))
        else:
            yield image


@command(commands, "report", "Inspect")
def report(
    run: Annotated[str, typer.Argument(help="A run (folder or name) or `newest`.")],
    data: Data = None,
    *,
    workspace: WorkspaceFolder = WORKSPACE,
    out: OutFile = None,
    prompts: PromptsFolder = None,
    orp: OrpFolder = None,
) -> Report[None]:
    """Write an HTML page: result, curves, predictions, attention.

    Example: dptr report newest crops/
    """
    from dptr.trainer import report as stage
    from dptr.trainer.training.runs import Run

    place = Workspace.at(workspace)
    described = newest_run(place) if run == NEWEST else Run.load(place.find_run(run))
    out = out or described.folder / REPORT_FILE
    require_replaceable(out)
    crops = crops_for(data, described)
    place = place.with_stores(prompts, orp)
    candidates = [place.prompts, place.orp]
    stores = stage.matching_stores(described, candidates) if described.kind == "pretrain" else None
    started = time.monotonic()
    sections = stage.report(described, out, crops, stores)
    lines = [str(out)]
    if described.kind == "finetune" and crops is None:
        lines.append("no predictions on it: name labelled crops")
    if described.kind == "pretrain" and stores is None:
        lines.append("no predictions on it: the stores in this workspace are not those the run was trained on")
    figures = {"out": str(out), "rows": sections, "computed": sections, "quarantined": 0}
    return Report({**figures, "seconds": time.monotonic() - started}, "\n".join(lines))


def examples_table(run: Path, crops: Path) -> str:
    """Read the first crops of a folder with a list of labels; return image, ground truth and reading as a table."""
    from dptr.cache.printing import table
    from dptr.trainer.read import load_reader

    rows = [line.split("\t") for line in (crops / LABELS_FILE).read_text(encoding="utf-8").splitlines()][:_EXAMPLES]
    predictions = load_reader(run).read([crops / name for name, _ in rows])
    shown = [
        (*row, found.text, "" if row[1] == found.text else "differs")
        for row, found in zip(rows, predictions, strict=True)
    ]
    return table(["image", "ground_truth", "read", ""], shown)


_Half = Annotated[bool, typer.Option("--half", help="Store float16 weights (safetensors only).")]


@command(commands, "export", "Share")
def export(
    run: Annotated[str, typer.Argument(help="A run or `newest`, a model file, `bundled` or `scripts`.")],
    *,
    workspace: WorkspaceFolder = WORKSPACE,
    to: Annotated[ExportTarget, typer.Option(help="Output format; parseq and openocr: decoder weights only.")],
    out: OutFile = None,
    data: Annotated[list[Path] | None, typer.Option("--data", help="Labelled crops for the ONNX check.")] = None,
    half: _Half = False,
    lexicon: LexiconFile = None,
) -> Report[None]:
    """Write a model for other programs (ONNX is checked).

    Example: dptr export bundled --to onnx
    """
    from dptr.trainer import export as stage

    described = model_at(model_path(Workspace.at(workspace), run))
    crops = crops_for(data, described)
    out = out or stage.default_path(described, to)
    require_replaceable(out, as_model=True)
    summary = stage.export(described, to, out, crops, half, lexicon)
    checked = f", as torch reads on {summary.checked} images (scores {summary.largest_difference:.0e} apart)"
    text = f"{summary.out}, {summary.out.stat().st_size / 1e6:.1f} MB" + (checked if summary.checked else "")
    figures = {"out": str(summary.out), "rows": 1, "computed": 1, "quarantined": 0, "seconds": summary.seconds}
    return Report({**figures, "checked": summary.checked, "largest_difference": summary.largest_difference}, text)


@command(commands, "push", "Share")
def push(
    run: Annotated[str, typer.Argument(help="A run or `newest`, or a model file.")],
    repo: Annotated[str, typer.Argument(help="USER/MODEL on the Hugging Face Hub.")],
    *,
    workspace: WorkspaceFolder = WORKSPACE,
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    license: Annotated[
        str | None, typer.Option("--license", help="License identifier, for example apache-2.0.")
    ] = None,
    half: _Half = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the files to this folder instead of uploading them.")
    ] = None,
) -> Report[None]:
    """Upload a model with its card to the Hugging Face hub.

    The card shows what `evaluate` measured; `user/model` then names the model.

    Example: dptr push newest me/greek-signs --license apache-2.0
    """
    from dptr.trainer import push as stage

    started = time.monotonic()
    place = Workspace.at(workspace)
    path = model_path(place, run)
    described, read = model_at(path), kept_in(place, path)
    if out is not None:
        require_replaceable(out)
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"{out} holds files already", "Name a new folder with -o")
        stage.write_files(described, repo, read, out, license, half)
        figures: dict[str, Any] = {"out": str(out)}
        text = f"in {out}: {', '.join(stage.FILES)}; nothing was pushed"
    else:
        pushed = stage.push(described, repo, read, private, license, half)
        figures = {"out": repo, "commit": pushed.oid, "url": pushed.commit_url}
        text = f"{pushed.commit_url}\nuse it: dptr read {repo} word.png"
    counts = {
        "files": list(stage.FILES),
        "rows": 1,
        "computed": 1,
        "quarantined": 0,
        "seconds": time.monotonic() - started,
    }
    return Report({**figures, **counts}, text)
