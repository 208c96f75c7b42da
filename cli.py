"""The command line: every command parses, calls one function and prints.

What all commands share (workspace, ``--json``, ``--quiet``, ``--debug``) is added by one decorator; what went wrong
becomes one line and an exit code in one place. Heavy libraries are imported inside the commands that need them, so that
``dptr --help`` answers at once.
"""

import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import Abort, Exit, TyperException
from typer.main import get_command

from dptr.cache.errors import DamagedStore, DptrError, UserError
from dptr.cache.progress import set_quiet
from dptr.cache.workspace import Workspace

if TYPE_CHECKING:
    from dptr.cache.charset import Normalization
    from dptr.trainer.training.recipe import Recipe
    from dptr.trainer.training.runs import Run
    from dptr.trainer.training.trackers import Tracker

app = typer.Typer(
    help="Pre-train a scene-text decoder from text alone, then fine-tune it on few labelled crops.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMON = {
    "workspace": Annotated[
        Path, typer.Option(envvar="DPTR_WORKSPACE", help="Folder that holds stores and runs.", show_default=True)
    ],
    "as_json": Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")],
    "quiet": Annotated[bool, typer.Option("--quiet", help="No progress, no notes.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show tracebacks.")],
}
_DEFAULTS = {"workspace": Path("dptr_data"), "as_json": False, "quiet": False, "debug": False}

Out = Annotated[Path | None, typer.Option("-o", "--out", help="Folder to write to instead of the workspace's own.")]
ClipName = Annotated[str, typer.Option("--clip", help="`tiny` (bundled), a directory, or a hub id.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda where there is one.")]
MaxBad = Annotated[int | None, typer.Option(help="Fail (exit 4) when more inputs than this are refused.")]
Dtype = Annotated[str, typer.Option(help="How states are stored: float16, float32 or int8.")]
Precision = Annotated[str, typer.Option(help="Arithmetic of CLIP: fp32 or bf16.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="tiny, small, paper, or a TOML file.")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps in all.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, for any recipe key.")]
Track = Annotated[str | None, typer.Option(help="Show metrics in tensorboard or wandb, too.")]
Data = Annotated[list[Path] | None, typer.Option("--data", help="Labelled crops; more may follow.")]
MoreData = Annotated[list[Path] | None, typer.Argument(help="Further data.", hidden=True)]
CharsetName = Annotated[str | None, typer.Option("--charset", help="36, 62, 94, or a file of characters.")]


_INTERRUPTED = 130
_DEMO_CROPS, _DEMO_TEST_CROPS, _DEMO_EXAMPLES = 6000, 200, 12


@dataclass
class Report:
    """What a command came to: figures for programs, text for people."""

    figures: dict[str, Any]
    text: str = ""
    lines: list[dict[str, Any]] = field(default_factory=list)


def command(name: str) -> Callable[[Callable[..., Report]], Callable[..., Report]]:
    """Register a function ``(workspace, ...) -> Report`` as a command with the common options."""

    def register(function: Callable[..., Report]) -> Callable[..., Report]:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.name != "workspace"]
        common = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[key], annotation=annotation)
            for key, annotation in _COMMON.items()
        ]

        def run(workspace: Path, as_json: bool, quiet: bool, debug: bool, **arguments: Any) -> None:
            set_quiet(quiet)
            os.environ["DPTR_DEBUG"] = "1" if debug else ""
            _print(name, function(Workspace(workspace), **arguments), as_json)

        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        run.__signature__ = inspect.Signature([*keyword, *common])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in [*keyword, *common]}
        run.__doc__ = function.__doc__
        app.command(name)(run)
        return function

    return register


@command("embed-text")
def _embed_text(
    workspace: Workspace,
    files: Annotated[list[str], typer.Argument(help="Text, .gz, .zst, .xz, JSONL, Parquet, LMDB, or - for stdin.")],
    out: Out = None,
    clip: ClipName = "tiny",
    unit: Annotated[str, typer.Option(help="What a label is: word or line.")] = "word",
    column: Annotated[str, typer.Option(help="Column of JSONL and Parquet files.")] = "text",
    charset: Annotated[str, typer.Option(help="36, 62, 94, a file, or auto (learnt from the corpus).")] = "94",
    min_count: Annotated[int, typer.Option(help="auto: least occurrences of a character.")] = 1,
    case: Annotated[str, typer.Option(help="keep, lower, or upper-lower-title.")] = "keep",
    unicode: Annotated[str, typer.Option(help="Normal form: nfc, nfkc or none.")] = "nfkc",
    ascii: Annotated[bool, typer.Option("--ascii", help="Fold to ASCII, as the authors do.")] = False,
    max_label_length: Annotated[int, typer.Option(help="Longest label in characters.")] = 25,
    template: Annotated[str, typer.Option(help="Sentence around {label}.")] = "a photo of a '{label}'",
    states: Annotated[str | None, typer.Option(help="hidden or projected; by default what fits the images.")] = None,
    context: Annotated[str, typer.Option(help="content (up to the end token) or full (all 77).")] = "content",
    precision: Precision = "fp32",
    dtype: Dtype = "float16",
    shard_rows: Annotated[int, typer.Option(help="Labels of a shard.")] = 16384,
    max_bad: MaxBad = None,
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost.")] = False,
) -> Report:
    """Corpus to prompt store.

    Example: dptr embed-text words.txt
    """
    from dptr.cache.charset import Normalization
    from dptr.pipeline.text.corpus import CorpusSettings
    from dptr.pipeline.text.embed_text import EmbedTextSettings, embed_text, estimate

    _require_choice("--unit", unit, "word", "line")
    _require_choice("--unicode", unicode, "nfc", "nfkc", "none")
    _require_choice("--case", case, "keep", "lower", "upper-lower-title")
    _require_choice("--context", context, "content", "full")
    _require_choice("--states", states or "hidden", "hidden", "projected")
    _require_storage(precision, dtype)
    normalization = Normalization(unicode, ascii, unit == "line", max_label_length)  # type: ignore[arg-type]
    corpus = CorpusSettings(unit, column, normalization, charset, min_count, case)  # type: ignore[arg-type]
    settings = EmbedTextSettings(
        corpus=corpus,
        clip=clip,
        template=template,
        states=states,  # type: ignore[arg-type]
        context=context,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
        shard_rows=shard_rows,
        max_bad=max_bad,
        device=_device(device),
    )
    folder = out or workspace.prompts
    if dry_run:
        cost = estimate(files, folder, settings)
        text = f"{cost.rows:,} rows to compute, about {cost.bytes / 1e6:,.0f} MB, about {cost.seconds:,.0f} s"
        return Report({"out": str(folder), **vars(cost)}, text)
    summary = embed_text(files, folder, settings)
    return Report(_figures(summary), f"{summary.table}\n{summary.rows:,} rows in {summary.out}")


@command("build-orp-bank")
def _build_orp_bank(
    workspace: Workspace,
    paths: Annotated[list[Path], typer.Argument(help="Folders, image files, .tar, .zip, Parquet or LMDB.")],
    out: Out = None,
    clip: ClipName = "tiny",
    crops_per_image: Annotated[int, typer.Option(help="Random crops of each photo.")] = 8,
    tokens_per_crop: Annotated[int | None, typer.Option(help="Tokens kept of each crop; all by default.")] = None,
    workers: Annotated[int, typer.Option(help="Threads that decode photos.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of crops and tokens.")] = 0,
    precision: Precision = "fp32",
    dtype: Dtype = "float16",
    exclude_near: Annotated[list[Path] | None, typer.Option(help="Keep out photos that nearly equal these.")] = None,
    exclude_threshold: Annotated[float, typer.Option(help="Pooled cosine from which photos are nearly equal.")] = 0.95,
    retry_quarantined: Annotated[bool, typer.Option("--retry-quarantined", help="Read refused photos again.")] = False,
    max_bad: MaxBad = None,
    device: Device = "auto",
) -> Report:
    """Photos to ORP bank, with a FAISS index.

    Example: dptr build-orp-bank photos/
    """
    from dptr.pipeline.photos.build_orp_bank import OrpBankSettings, build_orp_bank

    _require_storage(precision, dtype)
    settings = OrpBankSettings(
        clip=clip,
        precision=precision,  # type: ignore[arg-type]
        crops_per_image=crops_per_image,
        tokens_per_crop=tokens_per_crop,
        seed=seed,
        dtype=dtype,  # type: ignore[arg-type]
        workers=workers,
        max_bad=max_bad,
        retry_quarantined=retry_quarantined,
        exclude_near=tuple(exclude_near or ()),
        exclude_threshold=exclude_threshold,
        device=_device(device),
    )
    summary = build_orp_bank(paths, out or workspace.orp, settings)
    return Report(_figures(summary), f"{summary.rows:,} crops in {summary.out}, {summary.quarantined} photos refused")


@command("mine-neighbours")
def _mine_neighbours(
    workspace: Workspace,
    k: Annotated[int, typer.Option("-k", help="Crops for each prompt.")] = 32,
) -> Report:
    """Each prompt's nearest crops, for noise = nearest; `pretrain` does it by itself when its recipe asks for it.

    Example: dptr mine-neighbours -k 32
    """
    from dptr.pipeline.neighbours.mine_neighbours import mine_neighbours

    summary = mine_neighbours(workspace.prompts, workspace.orp, k)
    figures = {**_figures(summary), "quarantined": 0}
    return Report(figures, f"{summary.k} nearest crops of {summary.rows:,} prompts, recall {summary.recall:.3f}")


@command("pretrain")
def _pretrain(
    workspace: Workspace,
    recipe: RecipeName = "tiny",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the run.")] = None,
    steps: Steps = None,
    seed: Seed = None,
    decoder: Annotated[str | None, typer.Option(help="parseq, nrtr, parallel, or a registered one.")] = None,
    noise: Annotated[str | None, typer.Option(help="Crops for noise: random, nearest or mixed.")] = None,
    sampling: Annotated[str | None, typer.Option(help="Draw labels uniform, or by their count in the corpus.")] = None,
    track: Track = None,
    changes: Changes = None,
    device: Device = "auto",
) -> Report:
    """Prompt store and ORP bank to a pre-trained decoder; the same command goes on where it stopped.

    Example: dptr pretrain --recipe tiny --set noise.ratio=0.2
    """
    from dptr.cache.stores.prompts import PromptStore
    from dptr.trainer.pretrain import data_identity, pretrain
    from dptr.trainer.training.recipe import load_recipe
    from dptr.trainer.training.runs import default_name

    flags = {"decoder.kind": decoder, "noise.draw": noise, "pretrain.sampling": sampling}
    settings = load_recipe(recipe, _changes("pretrain", changes, steps, seed, flags))
    store = PromptStore(workspace.prompts)
    bank = _open_bank(workspace, settings)
    folder = out or workspace.runs / default_name("pretrain", settings, data_identity(store, bank))
    neighbours = _open_neighbours(workspace, bank, settings)
    summary = pretrain(store, bank, neighbours, settings, folder, _device(device), _tracker(track))
    metrics = summary.metrics
    text = f"{summary.steps:,} steps; held-out labels read from their states: {metrics['accuracy']:.1%} (case aside)"
    if "accuracy_with_noise" in metrics:
        text += f", with noise {metrics['accuracy_with_noise']:.1%}"
    return Report(_figures(summary), f"{text}\nrun: {summary.out}")


@command("finetune")
def _finetune(
    workspace: Workspace,
    data: Data = None,
    more: MoreData = None,
    start: Annotated[
        str, typer.Option("--from", help="Pre-trained run; `newest`, or `none` for the control.")
    ] = "newest",
    charset: CharsetName = None,
    recipe: RecipeName = "tiny",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the run.")] = None,
    steps: Steps = None,
    seed: Seed = None,
    encoder: Annotated[str | None, typer.Option(help="vit, or clip:ID, a CLIP's own image tower.")] = None,
    fmu: Annotated[str | None, typer.Option(help="queries, or none: the decoder reads all image tokens.")] = None,
    freeze: Annotated[str | None, typer.Option(help="Keep parts as they came, in epochs: decoder:5.")] = None,
    mix: Annotated[str | None, typer.Option(help="How often each of the data is drawn: 3,1.")] = None,
    track: Track = None,
    changes: Changes = None,
    device: Device = "auto",
) -> Report:
    """Labelled crops to a recogniser, from a pre-trained decoder.

    Example: dptr finetune --data crops/
    """
    from dptr.cache.charset import Charset
    from dptr.cache.word_images.dataset import WordImages
    from dptr.trainer.finetune import data_identity, finetune
    from dptr.trainer.training.recipe import load_recipe
    from dptr.trainer.training.runs import default_name

    run = _start_run(workspace, start)
    flags = {"encoder.kind": encoder, "fmu.kind": fmu, "finetune.freeze": freeze, "finetune.mix": mix}
    asked = _changes("finetune", changes, steps, seed, flags)
    settings = load_recipe(recipe, asked, run.recipe.decoder if run else None)
    clip, settings = _clip_encoder(workspace, settings)
    characters = Charset.named(charset) if charset else run.charset if run else Charset.named("94")
    images = WordImages.open(_data(data, more), characters, _normalization(settings))
    folder = out or workspace.runs / default_name("finetune", settings, data_identity(images, run))
    summary = finetune(images, characters, run, settings, folder, _device(device), _tracker(track), clip)
    metrics = summary.metrics
    upright = summary.upright
    lines = [
        *_left_out(images),
        *([f"{len(upright):,} images taller than wide, such as {upright[0]}"] if upright else []),
        f"{summary.steps:,} steps; held-back crops read: {metrics['accuracy']:.1%}, "
        f"{metrics['accuracy_36']:.1%} with 36 characters",
        f"run: {summary.out}",
    ]
    return Report(_figures(summary), "\n".join(lines))


@command("evaluate")
def _evaluate(
    workspace: Workspace,
    run: Annotated[str, typer.Argument(help="A fine-tuning run: its folder or name.")],
    more: MoreData = None,
    data: Data = None,
    device: Device = "auto",
) -> Report:
    """Word accuracy and 1-NED of a recogniser, per data set and charset.

    Example: dptr evaluate dptr_data/runs/finetune-parseq-1234abcd --data crops/
    """
    from dptr.cache.word_images.dataset import WordImages
    from dptr.trainer.evaluate import evaluate
    from dptr.trainer.evaluation_table import figures, table
    from dptr.trainer.read import load

    reader = load(workspace.find_run(run), _device(device))
    sets = {str(path): WordImages.open_as_written([path]) for path in _data(data, more)}
    result = evaluate(reader.recognizer, sets, _device(device))
    left_out = [line for images in sets.values() for line in _left_out(images)]
    return Report({"out": run, **figures(result)}, "\n".join([table(result), *left_out]))


@command("read")
def _read(
    workspace: Workspace,
    run: Annotated[str, typer.Argument(help="A fine-tuning run: its folder or name.")],
    images: Annotated[list[str], typer.Argument(help="Pictures of one word each, folders, or - for names on stdin.")],
    device: Device = "auto",
) -> Report:
    """Text and confidence of each image.

    Example: dptr read dptr_data/runs/finetune-parseq-1234abcd sign.png
    """
    import time

    from dptr.trainer.read import find_images, load

    started = time.monotonic()
    reader = load(workspace.find_run(run), _device(device))
    loaded = time.monotonic()
    named = [name for image in images for name in (sys.stdin.read().splitlines() if image == "-" else [image])]
    paths = list(find_images([Path(name) for name in named if name]))
    readings = reader.read(paths)
    seconds = time.monotonic() - loaded
    lines = [{"image": str(path), **vars(reading)} for path, reading in zip(paths, readings, strict=True)]
    text = "\n".join(f"{line['image']}\t{line['text']}\t{line['confidence']:.3f}" for line in lines)
    figures = {"out": run, "rows": len(lines), "computed": len(lines), "quarantined": 0, "seconds": seconds}
    return Report({**figures, "load_seconds": loaded - started}, text, lines)


@command("export")
def _export(
    workspace: Workspace,
    run: Annotated[str, typer.Argument(help="A run: its folder or name.")],
    to: Annotated[str, typer.Option(help="onnx, safetensors, parseq or openocr (decoder under their names).")],
    more: MoreData = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; by default in the run.")] = None,
    data: Annotated[list[Path] | None, typer.Option("--data", help="Labelled crops to check ONNX with.")] = None,
) -> Report:
    """A model for other programs; ONNX is checked against torch before it counts as written.

    Example: dptr export dptr_data/runs/finetune-parseq-1234abcd --to onnx
    """
    from dptr.cache.word_images.dataset import WordImages
    from dptr.trainer.export.export import TARGETS, default_path, export
    from dptr.trainer.training.runs import Run

    _require_choice("--to", to, *TARGETS)
    target = next(name for name in TARGETS if name == to)
    described = Run.load(workspace.find_run(run))
    paths = _data(data, more) if data else []
    crops = WordImages.open(paths, described.charset, _normalization_for_evaluation()) if paths else None
    summary = export(described, target, out or default_path(described, target), crops)
    checked = f", as torch reads on {summary.checked} images (scores {summary.largest_difference:.0e} apart)"
    text = f"{summary.out}, {summary.out.stat().st_size / 1e6:.1f} MB" + (checked if summary.checked else "")
    figures = {"out": str(summary.out), "rows": 1, "computed": 1, "quarantined": 0, "seconds": summary.seconds}
    return Report({**figures, "checked": summary.checked, "largest_difference": summary.largest_difference}, text)


@command("report")
def _report(
    workspace: Workspace,
    run: Annotated[str, typer.Argument(help="A run: its folder or name.")],
    more: MoreData = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write; by default in the run.")] = None,
    data: Annotated[list[Path] | None, typer.Option("--data", help="Labelled crops to show readings of.")] = None,
) -> Report:
    """One self-contained HTML page: curves, readings, and the noise or where the Feature Merge Unit looks.

    Example: dptr report dptr_data/runs/finetune-parseq-1234abcd --data crops/
    """
    from dptr.cache.word_images.dataset import WordImages
    from dptr.trainer.report.report import FILE_NAME, matching_stores, report
    from dptr.trainer.training.runs import Run

    described = Run.load(workspace.find_run(run))
    paths = _data(data, more) if data else []
    crops = WordImages.open(paths, described.charset, _normalization_for_evaluation()) if paths else None
    stores = matching_stores(described, [workspace.prompts, workspace.orp]) if described.kind == "pretrain" else None
    summary = report(described, out or described.folder / FILE_NAME, crops, stores)
    lines = [str(summary.out)]
    if described.kind == "finetune" and crops is None:
        lines.append("no readings on it: give --data CROPS")
    if described.kind == "pretrain" and stores is None:
        lines.append("no readings on it: the stores in this workspace are not those the run was trained on")
    figures = {"out": str(summary.out), "rows": summary.sections, "computed": summary.sections, "quarantined": 0}
    return Report({**figures, "seconds": summary.seconds}, "\n".join(lines))


@command("sql")
def _sql(
    workspace: Workspace,
    query: Annotated[str | None, typer.Argument(help="SQL; without it, an interactive prompt.")] = None,
) -> Report:
    """DuckDB over everything in the workspace: prompts, crops, neighbours, refused_text, refused_photos, runs, metrics.

    Example: dptr sql "select label, n_tokens from prompts order by n_tokens desc limit 10"
    """
    import time

    from dptr.cache.sql import views as sql

    started = time.monotonic()
    connection = sql.connect(workspace)
    if query is None:
        sql.prompt(connection)
        return Report({"out": str(workspace.root), "rows": 0, "seconds": time.monotonic() - started})
    columns, rows = sql.ask(connection, query)
    figures = {"out": str(workspace.root), "rows": len(rows), "columns": columns, "result": rows}
    return Report({**figures, "seconds": time.monotonic() - started}, sql.table(columns, rows))


@command("render-words")
def _render_words(
    workspace: Workspace,
    files: Annotated[list[str], typer.Argument(help="Word lists, as for embed-text.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder, or a .lmdb or .parquet file.")],
    count: Annotated[int | None, typer.Option(help="Crops in all; by default one a word.")] = None,
    fonts: Annotated[Path | None, typer.Option(help="Folder of fonts; otherwise those that are installed.")] = None,
    photos: Annotated[Path | None, typer.Option(help="Folder of photos for backgrounds.")] = None,
    style: Annotated[str, typer.Option(help="clean, natural or hard.")] = "natural",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that render.")] = 1,
) -> Report:
    """Labelled synthetic crops from a word list.

    Example: dptr render-words words.txt -o crops/ --count 1000
    """
    from dptr.pipeline.rendering.render_words import render_words
    from dptr.pipeline.rendering.style import RenderStyle
    from dptr.pipeline.rendering.word_lists import photo_paths, read_words

    summary = render_words(
        read_words(files),
        out,
        count=count,
        seed=seed,
        fonts=fonts,
        photos=photo_paths(photos) if photos else (),
        style=RenderStyle.named(style),
        workers=workers,
    )
    return Report(_figures(summary), f"{summary.rows:,} crops in {summary.out}")


@command("train-clip")
def _train_clip(
    workspace: Workspace,
    data: Data = None,
    more: MoreData = None,
    held_out: Annotated[Path | None, typer.Option(help="Labelled crops of other words, for validation.")] = None,
    photos: Annotated[Path | None, typer.Option(help="Folder of photos without text.")] = None,
    charset: CharsetName = None,
    clip: Annotated[
        str, typer.Option("--clip", help="The CLIP whose shape, tokenizer and preprocessing are taken.")
    ] = "tiny",
    start: Annotated[str, typer.Option("--from", help="Run of train-clip to go on from, or `none`.")] = "none",
    recipe: Annotated[str, typer.Option("--recipe", help="clip, or a TOML file.")] = "clip",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the run.")] = None,
    steps: Steps = None,
    seed: Seed = None,
    track: Track = None,
    changes: Changes = None,
    device: Device = "auto",
) -> Report:
    """Labelled crops to a small CLIP of your own; the same command goes on where it stopped.

    Example: dptr train-clip --data crops/ --held-out other_crops/ --photos photos/ -o my_clip/
    """
    from dptr.cache.charset import Charset
    from dptr.cache.word_images.dataset import WordImages
    from dptr.pipeline.clip.clip_files import find_clip
    from dptr.pipeline.rendering.word_lists import photo_paths
    from dptr.pipeline.text.templates import Template
    from dptr.trainer.train_clip import train_clip
    from dptr.trainer.training.recipe import load_recipe

    settings = load_recipe(recipe, _changes("clip", changes, steps, seed, {}))
    if held_out is None:
        raise UserError("nothing to validate on", "Give labelled crops of words that training never sees: --held-out")
    characters = Charset.named(charset or "94")
    images = WordImages.open(_data(data, more), characters, _normalization(settings))
    summary = train_clip(
        images,
        WordImages.open([held_out], characters, _normalization(settings)),
        characters,
        photo_paths(photos) if photos else (),
        find_clip(clip),
        Template(settings.clip.template).prompt,
        None if start == "none" else _run_of("clip", workspace, start),
        settings,
        out or workspace.runs / "clip",
        _device(device),
        _tracker(track),
    )
    metrics = summary.metrics
    lines = [
        *_left_out(images),
        f"{summary.steps:,} steps; the right prompt among {metrics['prompts']:,.0f}: {metrics['top1']:.1%}",
        f"CLIP: {summary.model}",
    ]
    return Report(_figures(summary), "\n".join(lines))


@command("pack-crops")
def _pack_crops(
    workspace: Workspace,
    folder: Annotated[Path, typer.Argument(help="Labelled crops in any accepted form.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A .lmdb or .parquet file.")],
) -> Report:
    """Labelled crops into one LMDB (the field's keys) or Parquet file.

    Example: dptr pack-crops crops/ -o crops.lmdb
    """
    from dptr.cache.word_images.pack import pack_crops

    del workspace
    summary = pack_crops(folder, out)
    lines = [
        f"{count:,} left out: {reason} (such as {summary.examples[reason][0]})"
        for reason, count in summary.refused.items()
    ]
    refused = sum(summary.refused.values())
    return Report(
        {"out": str(out), "rows": summary.rows, "computed": summary.rows, "quarantined": refused},
        "\n".join([*lines, f"{summary.rows:,} crops in {out}"]),
    )


@command("verify")
def _verify(
    workspace: Workspace,
    folders: Annotated[list[Path] | None, typer.Argument(help="Stores; by default those of the workspace.")] = None,
) -> Report:
    """Check every hash of every store; exit 3 when something is damaged.

    Example: dptr verify
    """
    from dptr.cache.stores.manifest import FILE_NAME
    from dptr.cache.stores.verify import verify

    stores = folders or [store for store in (workspace.prompts, workspace.orp) if (store / FILE_NAME).is_file()]
    if not stores:
        raise UserError(f"no store in {workspace.root}", "Name a store's folder")
    damages = [damage for store in stores for damage in verify(store)]
    if damages:
        listed = "; ".join(f"{damage.folder / damage.file}: {damage.problem}" for damage in damages)
        raise DamagedStore(listed, "Move the store away and make it again, or restore the named files from a copy")
    return Report({"out": [str(store) for store in stores], "rows": len(stores)}, f"{len(stores)} stores are whole")


@command("demo")
def _demo(
    workspace: Workspace,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything the demo makes.")] = Path("dptr_demo"),
) -> Report:
    """The whole way on data that is already on this machine: minutes on a laptop.

    Example: dptr demo
    """
    import time

    from dptr.cache.progress import note
    from dptr.pipeline.rendering.demo_data import packaged_photos, standard_library_words
    from dptr.pipeline.rendering.render_words import render_words
    from dptr.pipeline.rendering.style import RenderStyle

    started = time.monotonic()
    del workspace  # the demo keeps to a workspace of its own
    here = Workspace(out / "dptr_data")
    words, corpus = standard_library_words(), out / "words.txt"
    out.mkdir(parents=True, exist_ok=True)
    corpus.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    crops = {"train": (out / "crops", _DEMO_CROPS, 0), "test": (out / "test_crops", _DEMO_TEST_CROPS, 1)}
    for folder, count, seed in crops.values():
        if not (folder / "labels.tsv").is_file():
            render_words(words, folder, count=count, seed=seed, style=RenderStyle.of_difficulty(0.0))
    note("\n1/5  text to CLIP states")
    _embed_text(here, [str(corpus)], charset="36")
    note("\n2/5  photos to noise")
    _build_orp_bank(here, packaged_photos(), crops_per_image=40)
    note("\n3/5  pre-training the decoder on text states alone")
    pretrained = _pretrain(here, recipe="demo")
    note("\n4/5  fine-tuning on rendered crops")
    run = Path(str(_finetune(here, data=[crops["train"][0]], recipe="demo").figures["out"]))
    note("\n5/5  reading crops it has not seen")
    evaluation = _evaluate(here, str(run), data=[crops["test"][0]])
    examples = _demo_examples(run, crops["test"][0])
    figures = {
        "out": str(out),
        "rows": evaluation.figures["rows"],
        "computed": evaluation.figures["rows"],
        "quarantined": evaluation.figures["quarantined"],
        "metrics": {**pretrained.figures["metrics"], **evaluation.figures["metrics"]},
        "seconds": time.monotonic() - started,
    }
    return Report(figures, _demo_text(here, crops["test"][0], run, examples, figures))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with the exit code that the error class fixes."""
    sys.exit(run_command(arguments))


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; what went wrong is printed on stderr as one line."""
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    try:
        given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
        # typer turns Ctrl-C and --help into exit codes of its own, and hands them back.
        code = get_command(app).main(args=given, standalone_mode=False)
        return _interrupted() if code == _INTERRUPTED else int(code or 0)
    except DptrError as error:
        return _fail(error.exit_code, str(error))
    except TyperException as error:
        return _fail(2, f"{error.format_message().rstrip('.')}. See `dptr --help`")
    except (KeyboardInterrupt, Abort):
        return _interrupted()
    except Exit as error:
        return error.exit_code
    except MemoryError:
        return _fail(1, "out of memory. Use a smaller batch or shard")
    except Exception as error:
        return _fail(
            1, f"unexpected {type(error).__name__}: {error}. Please report it; --debug shows where it happened"
        )


def _interrupted() -> int:
    return _fail(_INTERRUPTED, "interrupted; what was finished is kept, and the same command goes on")


def _interrupt() -> None:
    raise KeyboardInterrupt


def _fail(code: int, message: str) -> int:
    if os.environ.get("DPTR_DEBUG"):
        traceback.print_exc()
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code


def _print(name: str, report: Report, as_json: bool) -> None:
    if not as_json:
        if report.text:
            print(report.text)
        return
    for line in report.lines:
        print(json.dumps(line, ensure_ascii=False))
    figures = report.figures
    if figures.get("seconds") and "computed" in figures:
        figures["rows_per_second"] = figures["computed"] / figures["seconds"]
    print(json.dumps({"command": name, **figures}, ensure_ascii=False, default=str))


def _figures(summary: Any) -> dict[str, Any]:
    """A summary's plain fields, for JSON."""
    return {key: value for key, value in vars(summary).items() if key not in ("table", "coverage")}


def _demo_examples(run: Path, crops: Path) -> list[tuple[str, str, str]]:
    """Image, truth and reading of the first few test crops."""
    from dptr.trainer.read import load

    rows = [line.split("\t") for line in (crops / "labels.tsv").read_text(encoding="utf-8").splitlines()]
    shown = rows[:_DEMO_EXAMPLES]
    readings = load(run).read([crops / name for name, _ in shown])
    return [(name, truth, reading.text) for (name, truth), reading in zip(shown, readings, strict=True)]


def _demo_text(
    workspace: Workspace, crops: Path, run: Path, examples: list[tuple[str, str, str]], figures: dict[str, Any]
) -> str:
    from dptr.cache.sql.views import table

    metrics = figures["metrics"]
    lines = [
        table(["image", "truth", "read", ""], [(*row, "" if row[1] == row[2] else "differs") for row in examples]),
        "",
        f"word accuracy on {figures['rows']} rendered crops, none seen in training (their words were): "
        f"{metrics['accuracy_36_weighted']:.1%}",
        f"held-out words read from their text states after pre-training: {metrics['accuracy']:.1%}",
        "The bundled CLIP is small and the crops are rendered: this shows that every stage works, not how far it goes.",
        "",
        f"prompt store  {workspace.prompts}",
        f"ORP bank      {workspace.orp}",
        f"recogniser    {run}",
        f"test crops    {crops}",
        f'Ask the store:  dptr sql --workspace {workspace.root} "select label, n_tokens from prompts limit 5"',
        f"Read a crop:    dptr read {run} {crops}",
        f"{figures['seconds']:.0f} seconds in all",
    ]
    return "\n".join(lines)


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _require_choice(option: str, value: str, *choices: str) -> None:
    if value not in choices:
        raise UserError(f"{option} {value!r} is not known", f"Use one of: {', '.join(choices)}")


def _require_storage(precision: str, dtype: str) -> None:
    _require_choice("--precision", precision, "fp32", "bf16")
    _require_choice("--dtype", dtype, "float16", "float32", "int8")


def _changes(
    section: str, changes: list[str] | None, steps: int | None, seed: int | None, flags: dict[str, str | None]
) -> list[str]:
    """Fold the short flags into recipe changes; flags come last, so they win."""
    short = {f"{section}.steps": steps, f"{section}.seed": seed, **flags}
    return [*(changes or []), *(f"{key}={json.dumps(value)}" for key, value in short.items() if value is not None)]


def _clip_encoder(workspace: Workspace, recipe: "Recipe") -> "tuple[Path | None, Recipe]":
    """Find the CLIP whose image tower a recipe asks for, and let the recipe describe it."""
    from dptr.trainer.model.encoders.clip import PREFIX, describe

    if not recipe.encoder.kind.startswith(PREFIX):
        return None, recipe
    from dptr.pipeline.clip.clip_files import find_clip

    folder = find_clip(recipe.encoder.kind.removeprefix(PREFIX))
    return folder, recipe.replace("encoder", config=describe(folder))


def _tracker(name: str | None) -> "Tracker | None":
    from dptr.trainer.training.trackers import TRACKERS

    if name is not None:
        _require_choice("--track", name, *TRACKERS)
    return next((tracker for tracker in TRACKERS if tracker == name), None)


def _open_bank(workspace: Workspace, recipe: "Recipe") -> Any:
    from dptr.cache.stores.manifest import FILE_NAME
    from dptr.cache.stores.orp import OrpBank

    if recipe.noise.ratio == 0:
        return None
    if not (workspace.orp / FILE_NAME).is_file():
        raise UserError(
            f"the recipe adds noise but there is no ORP bank in {workspace.orp}",
            "Run `dptr build-orp-bank PHOTOS`, or train without noise: --set noise.ratio=0",
        )
    return OrpBank(workspace.orp)


def _open_neighbours(workspace: Workspace, bank: Any, recipe: "Recipe") -> Any:
    """Neighbours where the recipe's noise draws from them, mined first when they are missing or outdated."""
    from dptr.cache.stores.neighbours import Neighbours

    if bank is None or recipe.noise.draw == "random":
        return None
    from dptr.pipeline.neighbours.mine_neighbours import mine_neighbours

    mine_neighbours(workspace.prompts, workspace.orp, recipe.noise.neighbours)
    return Neighbours.open(workspace.prompts, bank)


def _start_run(workspace: Workspace, start: str) -> "Run | None":
    from dptr.trainer.training.runs import Run

    if start == "none":
        return None
    if start == "newest":
        runs = [run for run in map(Run.load, workspace.run_folders()) if run.kind == "pretrain"]
        if not runs:
            raise UserError(
                f"no pre-trained run in {workspace.runs}",
                "Run `dptr pretrain` first, or use --from none for the control",
            )
        return runs[-1]
    return _run_of("pretrain", workspace, start)


def _run_of(kind: str, workspace: Workspace, name: str) -> "Run":
    from dptr.trainer.training.runs import Run

    run = Run.load(workspace.find_run(name))
    if run.kind != kind:
        made_by = {"pretrain": "dptr pretrain", "clip": "dptr train-clip"}[kind]
        raise UserError(f"{name} holds a run of another kind ({run.kind})", f"Name one that `{made_by}` made")
    return run


def _data(data: list[Path] | None, more: list[Path] | None) -> list[Path]:
    paths = [*(data or []), *(more or [])]
    if not paths:
        raise UserError("no data named", "Give labelled crops: --data FOLDER")
    return paths


def _normalization(recipe: "Recipe") -> "Normalization":
    from dptr.cache.charset import Normalization

    return Normalization(max_label_length=recipe.decoder.max_label_length)


def _normalization_for_evaluation() -> "Normalization":
    from dptr.cache.charset import Normalization

    return Normalization(max_label_length=1000)


def _left_out(images: Any) -> list[str]:
    """Say which labels were left out or changed, with examples."""
    lines = []
    for what, counts in (("left out", images.refused), ("kept, but changed", images.changed)):
        for reason, count in counts.most_common():
            lines.append(f"{what}: {count:,} labels, {reason} (such as {images.examples[reason][0]})")
    return lines
