"""Commands that use a run: read, measure, show and export it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dptr.cache.command_line import Report, command, command_group
from dptr.cache.errors import UserError
from dptr.cache.file_names import LABELS_FILE, REPORT_FILE
from dptr.cache.options import Device, OrpFolder, PromptsFolder
from dptr.cache.progress import note
from dptr.cache.visible import visible
from dptr.cache.workspace import Workspace
from dptr.pipeline.clip.clip_files import find_clip
from dptr.pipeline.device import resolve_device
from dptr.trainer.choices import Protocol
from dptr.trainer.commands.options import (
    Arithmetic,
    Data,
    OutFile,
    RecogniserFirst,
    RunName,
    WordsFile,
    crops_for,
    kept_in,
    labels_left_out,
    named_data,
    recogniser_first,
)

if TYPE_CHECKING:
    from dptr.cache.word_images.dataset import WordImages
    from dptr.trainer.evaluate import Evaluation
    from dptr.trainer.read import Reader
    from dptr.trainer.training.runs import Run

_EXAMPLES = 12

commands = command_group()


@command(commands, "evaluate")
def evaluate(
    workspace: Workspace,
    names: RecogniserFirst = None,
    data: Data = None,
    protocol: Annotated[
        Protocol, typer.Option(help="field: 36, 62 and 94 characters; chinese: NFKC, case and traditional forms aside.")
    ] = "field",
    single_view: Annotated[
        bool,
        typer.Option("--single-view", help="Read each crop once, as published tables do: not turned, in one width."),
    ] = False,
    words: WordsFile = None,
    precision: Arithmetic = "auto",
    device: Device = "auto",
) -> Report:
    """Word accuracy and 1-NED of a recogniser (the bundled one if none is named), per data set and charset.

    Example: dptr evaluate dptr_data/runs/finetune-parseq-1234abcd --data crops/
    """
    from dptr.cache.word_images.dataset import WordImages
    from dptr.trainer import evaluate as stage
    from dptr.trainer.evaluation_table import figures, table
    from dptr.trainer.read import load

    run, more = recogniser_first(workspace, names or [])
    chosen = resolve_device(device)
    reader = load(run, chosen, find_clip, words, precision)
    sets = {str(path): WordImages.open_as_written([path]) for path in named_data([*(data or []), *map(Path, more)])}
    result = stage.evaluate(reader.recognizer, sets, chosen, protocol, single_view)
    left_out = [line for images in sets.values() for line in labels_left_out(images)]
    if words is None and not single_view:
        _keep(workspace, run, result)
    else:
        note("not read as `dptr read` does by default: not kept for `dptr sql`, nor for the page of `dptr push`")
    looks = "one look at each crop" if single_view else "tall and unsure crops are read in several views"
    return Report(
        {"out": str(run), "single_view": single_view, **figures(result)}, "\n".join([table(result), looks, *left_out])
    )


def _keep(workspace: Workspace, run: Path, result: "Evaluation") -> None:
    """Keep what was read with the run, for ``dptr sql``; where nothing can be written, it is said."""
    from dptr.trainer.predictions import keep_predictions
    from dptr.trainer.training.runs import Run

    folder, step = kept_in(workspace, run), None if run.is_file() else Run.load(run).step()
    try:
        for name, read in result.read.items():
            keep_predictions(folder, name, read, step)
    except OSError as error:
        note(f"what was read is not kept for `dptr sql`: {error}")


@command(commands, "read")
def read(
    workspace: Workspace,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN] IMAGE...",
            help="A run, if not the bundled recogniser; pictures of one word each, folders, or - for names on stdin.",
        ),
    ],
    boxes: Annotated[
        Path | None, typer.Option(help="The one image is a page: read its words by these boxes, JSON, CSV or ICDAR.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write readings to a .jsonl or .parquet file.")
    ] = None,
    words: WordsFile = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Read what is in folders and what comes into them, until interrupted.")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, max=4096, help="Pictures read at once.")] = None,
    precision: Arithmetic = "auto",
    device: Device = "auto",
) -> Report:
    """Text and confidence of each image; one that cannot be read gets a line on stderr, and the exit code is 4.

    Example: dptr read sign.png
    """
    import time

    from dptr.trainer import read_files as stage
    from dptr.trainer.read import load

    if out is not None:
        stage.require_form(out)
    started = time.monotonic()
    run, images = recogniser_first(workspace, names)
    if watch and boxes is not None:
        raise UserError("--watch is for folders, --boxes for one page", "Leave one of them out")
    if boxes is not None and (len(images) != 1 or not Path(images[0]).is_file()):
        raise UserError("--boxes is for the words of one page", "Name one image")
    reader = load(run, resolve_device(device), find_clip, words, precision)
    loaded = time.monotonic()
    if watch:
        return _watch(reader, images, out, batch_size)
    named = (name for image in images for name in (map(_line, sys.stdin) if image == "-" else [image]))
    sources = stage.pictures(named) if boxes is None else stage.words_of_page(Path(images[0]), boxes)
    tally = stage.Tally()
    report = Report({"out": str(out or run)}, problems=tally.problems)

    def rows() -> Iterator[tuple[dict[str, Any], str]]:
        used = time.process_time()
        for row in stage.read_rows(reader, sources, tally, batch_size):
            yield row, _shown(row)
        counts = {"rows": tally.read, "computed": tally.read, "quarantined": len(tally.problems)}
        seconds, each = time.monotonic() - loaded, 1000 * (time.process_time() - used) / tally.read
        report.figures |= {**counts, "seconds": seconds, "load_seconds": loaded - started, "core_milliseconds": each}
        note(f"{tally.read:,} read in {seconds:.1f} s, {each:.1f} ms of one core each")

    if out is None:
        report.rows = rows()
        return report
    stage.write_rows(out, (row for row, _ in rows()))
    report.text = f"{tally.read:,} readings in {out}"
    return report


def _watch(reader: "Reader", names: list[str], out: Path | None, batch_size: int | None) -> Report:
    """Read what comes into folders; the report's rows, or the file's lines, have no end."""
    from dptr.trainer import watched_folders as stage

    stage.require_watchable(names, out)
    before = stage.images_of(out) if out is not None else set()
    rows = stage.watched_rows(reader, [Path(name) for name in names], batch_size, before, _tell)
    note(f"watching {', '.join(names)}; Ctrl-C ends it")
    if out is None:
        return Report({}, rows=((row, _shown(row)) for row in rows))
    stage.append_rows(out, rows)
    return Report({"out": str(out)})


def _tell(error: UserError) -> None:
    print(f"error: {visible(str(error))}", file=sys.stderr, flush=True)


def _shown(row: dict[str, Any]) -> str:
    place = row["image"] if "box" not in row else f"{row['image']}:{row['box']}"
    return f"{place}\t{row['text']}\t{row['confidence']:.3f}"


def _line(text: str) -> str:
    return text.rstrip("\r\n")


@command(commands, "report")
def report(
    workspace: Workspace,
    run: RunName,
    other: Annotated[str | None, typer.Argument(help="A second run, to show beside the first.")] = None,
    out: OutFile = None,
    data: Annotated[list[Path] | None, typer.Option("--data", help="Labelled crops to show readings of.")] = None,
    prompts: PromptsFolder = None,
    orp: OrpFolder = None,
) -> Report:
    """One self-contained HTML page: curves, readings, and the noise or where FMU and decoder look; or of two runs.

    Example: dptr report dptr_data/runs/finetune-parseq-1234abcd --data crops/
    """
    from dptr.trainer.report import report as stage
    from dptr.trainer.training.runs import Run

    described = Run.load(workspace.find_run(run))
    crops = crops_for(data, described)
    if other is not None:
        return _side_by_side(described, Run.load(workspace.find_run(other)), out, crops)
    workspace = workspace.with_stores(prompts, orp)
    candidates = [workspace.prompts, workspace.orp]
    stores = stage.matching_stores(described, candidates) if described.kind == "pretrain" else None
    summary = stage.report(described, out or described.folder / REPORT_FILE, crops, stores)
    lines = [str(summary.out)]
    if described.kind == "finetune" and crops is None:
        lines.append("no readings on it: give --data CROPS")
    if described.kind == "pretrain" and stores is None:
        lines.append("no readings on it: the stores in this workspace are not those the run was trained on")
    figures = {"out": str(summary.out), "rows": summary.sections, "computed": summary.sections, "quarantined": 0}
    return Report({**figures, "seconds": summary.seconds}, "\n".join(lines))


def _side_by_side(run: "Run", other: "Run", out: Path | None, crops: "WordImages | None") -> Report:
    from dptr.trainer.report.side_by_side import report_two

    summary = report_two(run, other, out or run.folder / f"beside-{other.name}.html", crops)
    figures = {"out": str(summary.out), "rows": summary.sections, "computed": summary.sections, "quarantined": 0}
    return Report({**figures, "seconds": summary.seconds}, str(summary.out))


def examples_table(run: Path, crops: Path) -> str:
    """Read the first crops of a folder with a list of labels; return image, truth and reading as a table."""
    from dptr.cache.table import table
    from dptr.trainer.read import load

    rows = [line.split("\t") for line in (crops / LABELS_FILE).read_text(encoding="utf-8").splitlines()][:_EXAMPLES]
    readings = load(run).read([crops / name for name, _ in rows])
    shown = [
        (*row, found.text, "" if row[1] == found.text else "differs") for row, found in zip(rows, readings, strict=True)
    ]
    return table(["image", "truth", "read", ""], shown)
