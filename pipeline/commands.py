"""Commands of stage 1: inspection, text and photos to stores, words to labelled crops, checks of stores."""

import hashlib
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dptr.cache.choices import Case, Context, CropKind, EmbeddingsKind, UnicodeForm, Unit
from dptr.cache.command_line import Report, command, command_group, figures_of
from dptr.cache.errors import DamagedStore, DptrError, UserError
from dptr.cache.options import (
    COMMAND_LINE_ONLY,
    LARGEST_SEED,
    LONGEST_LABEL,
    MOST_WORKERS,
    WORKSPACE,
    Device,
    OrpFolder,
    Out,
    Paths,
    PromptsFolder,
    Texts,
    WorkspaceFolder,
    paths_of,
)
from dptr.cache.stores.files import atomic_path, require_replaceable
from dptr.cache.workspace import Workspace
from dptr.pipeline.executors.executor import IN_PROCESS, Executor, Part
from dptr.pipeline.options import (
    Address,
    Arithmetic,
    BatchSize,
    CharsetName,
    ClipName,
    Dtype,
    EngineName,
    EngineWorkers,
    LearntCharset,
    MaxBad,
    PartOf,
    UnitsKind,
    resolve_device,
)
from dptr.pipeline.text.templates import DEFAULT_TEMPLATE

if TYPE_CHECKING:
    from dptr.cache.stores.orp import OrpBank
    from dptr.cache.stores.prompts import PromptStore

commands = command_group()

#: More rectangles would be nearly equal.
_MOST_CROPS_PER_IMAGE = _MOST_COPIES = 10_000


@command(commands, "doctor", "Get started")
def doctor(workspace: WorkspaceFolder = WORKSPACE) -> Report[None]:
    """Check versions, devices, disk and fonts.

    Example: dptr doctor
    """
    from dptr.cache.printing import table
    from dptr.pipeline.first_look import examine

    started = time.monotonic()
    findings = examine(Path(workspace))
    missing = [f"{finding.group} {finding.name}: {finding.found}" for finding in findings if finding.missing]
    rows = [(finding.group, finding.name, finding.found) for finding in findings]
    text = table(["", "", "found"], rows) + f"\n\n{len(missing)} missing" + "".join(f"\n  {line}" for line in missing)
    figures = {"out": str(workspace), "rows": len(rows), "missing": missing, "findings": list(map(vars, findings))}
    return Report({**figures, "seconds": time.monotonic() - started}, text)


@command(commands, "init", "Get started")
def init(
    data: Annotated[
        Paths, typer.Argument(help="Word lists, labelled crops, photos and unlabelled crops, in any order.")
    ],
    *,
    workspace: WorkspaceFolder = WORKSPACE,
) -> Report[None]:
    """Inspect your data and print the `finetune` command for it.

    Example: dptr init words.txt crops/ photos/ more_crops/
    """
    from dptr.pipeline.first_look import look_at

    started = time.monotonic()
    look = look_at(paths_of(data))
    obstacles = look.obstacles()
    remarks = [*obstacles, *look.remarks()]
    run = look.command(Workspace(Path(workspace)).runs / "adapted")
    lines = [*look.lines(), *remarks, "", *([] if obstacles else ["run:", run])]
    figures = {"out": "", "rows": len(look.labels) + len(look.words), "remarks": remarks}
    figures["command_to_run"] = None if obstacles else run
    return Report({**figures, "seconds": time.monotonic() - started}, "\n".join(lines).rstrip())


@command(commands, "embed-text", "Stage 1: embeddings")
def embed_text(
    corpus: Annotated[
        Paths,
        typer.Argument(help="Text, CSV, TSV or JSONL (also .gz, .bz2, .xz, .zst), Parquet, LMDB, - for stdin."),
    ],
    *,
    workspace: WorkspaceFolder = WORKSPACE,
    out: Out = None,
    clip: ClipName = "tiny",
    unit: Annotated[Unit, typer.Option(help="Whether a label is a word or a line.")] = "word",
    column: Annotated[
        str | None, typer.Option(help="Column of CSV, TSV, JSONL and Parquet files; by default text, word or label.")
    ] = None,
    charset: LearntCharset = "94",
    units: UnitsKind = None,
    min_count: Annotated[int, typer.Option(min=1, help="Minimum count of a character for --charset auto.")] = 1,
    case: Annotated[Case, typer.Option(help="Letter case of the labels.")] = "keep",
    unicode: Annotated[UnicodeForm, typer.Option(help="Unicode normalisation form.")] = "nfkc",
    ascii: Annotated[bool, typer.Option("--ascii", help="Fold labels to ASCII, as in the authors' code.")] = False,
    simplified: Annotated[
        bool, typer.Option("--simplified", help="Convert traditional Chinese to simplified.")
    ] = False,
    max_label_length: Annotated[
        int, typer.Option(min=1, max=LONGEST_LABEL, help="Maximum label length in characters.")
    ] = 25,
    template: Annotated[Texts | None, typer.Option(help="Prompt with {label}.")] = None,
    embeddings: Annotated[
        EmbeddingsKind | None,
        typer.Option(help="Before or after the text projection; default: the width of the image embeddings."),
    ] = None,
    context: Annotated[Context, typer.Option(help="content: up to the end token; full: all positions.")] = "content",
    precision: Arithmetic = "fp32",
    dtype: Dtype = "float16",
    shard_rows: Annotated[int, typer.Option(min=1, help="Labels per shard.")] = 16384,
    cover_subwords: Annotated[
        int, typer.Option(min=0, help="Add made-up words until each subword token occurs in N prompts.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of made-up words and templates.")] = 0,
    max_bad: MaxBad = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    part: PartOf = None,
    engine: EngineName = "local",
    address: Address = None,
    engine_workers: EngineWorkers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print counts and cost without embedding."), COMMAND_LINE_ONLY
    ] = False,
) -> "Report[PromptStore]":
    """Embed a corpus with CLIP: the prompt store.

    In Python the corpus may be a list of words; a `Path` is a file.

    Example: dptr embed-text words.txt
    """
    from dptr.cache.stores.prompts import PromptStore
    from dptr.cache.text.normalization import Normalization
    from dptr.pipeline.text import embed_text as stage
    from dptr.pipeline.text.corpus import CorpusSettings

    normalization = Normalization(unicode, ascii, unit == "line", max_label_length, simplified)
    settings = stage.EmbedTextSettings(
        corpus=CorpusSettings(unit, column, normalization, charset, min_count, case, units),
        clip=clip,
        templates=tuple([template] if isinstance(template, str) else template or [DEFAULT_TEMPLATE]),
        embeddings=embeddings,
        context=context,
        precision=precision,
        dtype=dtype,
        shard_rows=shard_rows,
        cover_subwords=cover_subwords,
        seed=seed,
        max_bad=max_bad,
        device=resolve_device(device),
        tokens_per_batch=batch_size,
    )
    files = _corpus_files(corpus, Path(workspace), unit)
    folder = Path(out or Workspace(Path(workspace)).prompts)
    if dry_run:
        cost = stage.estimate(files, folder, settings)
        text = f"{cost.rows:,} rows to compute, about {cost.bytes / 1e6:,.0f} MB, about {cost.seconds:,.0f} s"
        return Report({"out": str(folder), **vars(cost)}, text)
    with _engine(engine, address, engine_workers, device) as executor:
        summary = stage.embed_text(files, folder, settings, Part.named(part), executor)
    text = f"{summary.table}\n{summary.rows:,} rows in {summary.out}"
    return Report(figures_of(summary), text, lambda: PromptStore(summary.out))


def _corpus_files(corpus: Paths, workspace: Path, unit: Unit) -> list[str]:
    """Return the files of a corpus; a list of words is written to a file in the workspace first."""
    if isinstance(corpus, str | Path) or not any(isinstance(item, str) for item in corpus):
        return [str(path) for path in paths_of(corpus)]
    words = [str(item) for item in corpus]
    for word in words:
        if Path(word).is_file():
            raise UserError(f"{word!r} in a list is a word, and there is a file of that name", "Give files as Path")
        if not word.strip() or "\n" in word or (unit == "word" and len(word.split()) > 1):
            raise UserError(f"{word!r} is not one word", 'Leave it out, or give unit="line" for words with spaces')
    text = "".join(f"{word}\n" for word in words)
    path = workspace / "words" / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.txt"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return [str(path)]


@command(commands, "build-orp-bank", "Stage 1: embeddings")
def build_orp_bank(
    photos: Annotated[Paths, typer.Argument(help="Folders, image files, .tar, .zip, Parquet or LMDB.")],
    *,
    workspace: WorkspaceFolder = WORKSPACE,
    out: Out = None,
    clip: ClipName = "tiny",
    crops: Annotated[
        CropKind, typer.Option(help="random: rectangles; whole: the centre square, as in the authors' code.")
    ] = "random",
    crops_per_image: Annotated[
        int | None,
        typer.Option(min=1, max=_MOST_CROPS_PER_IMAGE, help="Crops per photo; default: 8 random ones or one whole."),
    ] = None,
    tokens_per_crop: Annotated[int | None, typer.Option(min=1, help="Tokens stored per crop; default: all.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=MOST_WORKERS, help="Number of decoding threads.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of crops and tokens.")] = 0,
    precision: Arithmetic = "fp32",
    dtype: Dtype = "float16",
    exclude_near: Annotated[Paths | None, typer.Option(help="Reject near-duplicates of these photos.")] = None,
    exclude_threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Cosine similarity of near-duplicates.")
    ] = 0.95,
    max_bad: MaxBad = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    part: PartOf = None,
    engine: EngineName = "local",
    address: Address = None,
    engine_workers: EngineWorkers = None,
) -> "Report[OrpBank]":
    """Embed photo crops with CLIP: the ORP bank.

    Example: dptr build-orp-bank photos/
    """
    from dptr.cache.stores.orp import OrpBank
    from dptr.pipeline.photos import build_orp_bank as stage

    settings = stage.OrpBankSettings(
        clip=clip,
        precision=precision,
        kind=crops,
        crops_per_image=crops_per_image or (1 if crops == "whole" else 8),
        tokens_per_crop=tokens_per_crop,
        seed=seed,
        dtype=dtype,
        workers=workers,
        max_bad=max_bad,
        exclude_near=tuple(paths_of(exclude_near)),
        exclude_threshold=exclude_threshold,
        device=resolve_device(device),
        batch=batch_size,
    )
    folder = Path(out or Workspace(Path(workspace)).orp)
    with _engine(engine, address, engine_workers, device) as executor:
        summary = stage.build_orp_bank(paths_of(photos), folder, settings, Part.named(part), executor)
    text = f"{summary.rows:,} crops in {summary.out}, {summary.quarantined} photos rejected"
    return Report(figures_of(summary), text, lambda: OrpBank(summary.out))


@command(commands, "embed-crops", "Stage 1: embeddings")
def embed_crops(
    paths: Annotated[Paths, typer.Argument(help="Labelled crops in any accepted format.")],
    *,
    workspace: WorkspaceFolder = WORKSPACE,
    out: Out = None,
    clip: ClipName = "tiny",
    charset: CharsetName = "94",
    max_label_length: Annotated[int, typer.Option(min=1, help="Maximum label length in characters.")] = 25,
    copies: Annotated[
        int, typer.Option(min=1, max=_MOST_COPIES, help="Augmented copies per crop, the first undistorted.")
    ] = 8,
    augmentation: Annotated[float, typer.Option(min=0.0, max=10.0, help="Strength of the distortions.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the copies.")] = 0,
    precision: Arithmetic = "fp32",
    dtype: Dtype = "float16",
    workers: Annotated[int, typer.Option(min=1, max=MOST_WORKERS, help="Number of decoding threads.")] = 1,
    max_bad: MaxBad = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    part: PartOf = None,
) -> Report[None]:
    """Embed labelled crops with CLIP: the image-feature store.

    `finetune` trains from it without running CLIP's image encoder.

    Example: dptr embed-crops crops/ --clip openai/clip-vit-base-patch16 --copies 8
    """
    from dptr.cache.text.normalization import Normalization
    from dptr.pipeline import embed_crops as stage

    settings = stage.EmbedCropsSettings(
        clip=clip,
        charset=charset,
        normalization=Normalization(max_label_length=max_label_length),
        copies=copies,
        augmentation=augmentation,
        seed=seed,
        precision=precision,
        dtype=dtype,
        workers=workers,
        max_bad=max_bad,
        device=resolve_device(device),
        batch=batch_size,
    )
    folder = Path(out or Workspace(Path(workspace)).image_features)
    summary = stage.embed_crops(paths_of(paths), folder, settings, Part.named(part))
    text = f"{summary.crops:,} crops in {copies} copies each in {summary.out}, {summary.quarantined} crops rejected"
    return Report(figures_of(summary), text)


@command(commands, "mine-neighbours", "Stage 1: embeddings")
def mine_neighbours(
    *,
    workspace: WorkspaceFolder = WORKSPACE,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours per prompt.")] = 32,
    prompts: PromptsFolder = None,
    orp: OrpFolder = None,
) -> Report[None]:
    """Find each prompt's nearest photo crops.

    `pretrain` runs this when its recipe needs it (noise.draw = nearest or mixed).

    Example: dptr mine-neighbours -k 32
    """
    from dptr.pipeline.photos import mine_neighbours as stage

    place = Workspace.at(workspace, prompts, orp)
    summary = stage.mine_neighbours(place.prompts, place.orp, k)
    figures = {**figures_of(summary), "quarantined": 0}
    return Report(figures, f"{summary.k} nearest crops of {summary.rows:,} prompts, recall {summary.recall:.3f}")


@command(commands, "render-words", "Stage 1: embeddings")
def render_words(
    corpus: Annotated[Paths, typer.Argument(help="Word lists, as for embed-text.")],
    *,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder, or a .lmdb or .parquet file.")],
    unit: Annotated[Unit, typer.Option(help="Whether a label is a word or a line with its spaces.")] = "word",
    max_label_length: Annotated[
        int, typer.Option(min=1, max=LONGEST_LABEL, help="Maximum label length in characters.")
    ] = 40,
    count: Annotated[int | None, typer.Option(min=1, help="Number of crops; default: one per label.")] = None,
    fonts: Annotated[Path | None, typer.Option(help="Folder of fonts; default: installed fonts.")] = None,
    photos: Annotated[Path | None, typer.Option(help="Folder of photos for backgrounds.")] = None,
    style: Annotated[
        str, typer.Option(help="clean, natural, hard, street, curved, receipt, document, plate, or 0 to 1.")
    ] = "natural",
    like: Annotated[Path | None, typer.Option(help="Match the appearance of these crops instead of a style.")] = None,
    language: Annotated[
        str | None, typer.Option(help="Language tag for regional glyph forms, such as zh-Hans or ja.")
    ] = None,
    vertical: Annotated[
        float, typer.Option(min=0, max=1, help="Share of Chinese and Japanese words set vertically.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of everything random.")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=MOST_WORKERS, help="Number of rendering processes.")] = 1,
    part: PartOf = None,
    engine: EngineName = "local",
    address: Address = None,
    engine_workers: EngineWorkers = None,
) -> Report[None]:
    """Render labelled crops from a word list.

    Example: dptr render-words words.txt -o crops/ --count 1000
    """
    from dptr.pipeline.rendering import render_words as stage
    from dptr.pipeline.rendering.like import looks_of
    from dptr.pipeline.rendering.style import RenderStyle
    from dptr.pipeline.rendering.word_lists import photo_paths, read_words

    require_replaceable(out)
    with _engine(engine, address, engine_workers, "cpu") as executor:
        summary = stage.render_words(
            read_words(list(map(str, paths_of(corpus))), unit, max_label_length),
            out,
            count=count,
            seed=seed,
            fonts=fonts,
            language=language,
            photos=photo_paths(photos) if photos else (),
            style=replace(RenderStyle.like(looks_of(like)) if like else RenderStyle.named(style), vertical=vertical),
            workers=workers,
            part=Part.named(part),
            executor=executor,
        )
    return Report(figures_of(summary), f"{summary.rows:,} crops in {summary.out}")


@command(commands, "merge", "Stage 1: embeddings")
def merge(
    outs: Annotated[list[Path], typer.Argument(help="Stores or labelled crops that were made with --part.")],
) -> Report[None]:
    """Join the parts that --part made.

    The files equal those of a single run.

    Example: dptr merge dptr_data/prompts
    """
    from dptr.pipeline.executors.merge import merge as merge_parts

    merged = [merge_parts(out) for out in outs]
    lines = [f"{one.parts} parts: {one.rows:,} rows in {one.out}" for one in merged]
    figures = {name: sum(getattr(one, name) for one in merged) for name in ("rows", "computed", "parts")}
    return Report({"out": str(outs[0]), **figures, "quarantined": 0}, "\n".join(lines))


@command(commands, "verify", "Inspect")
def verify(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Stores, runs or model files; default: the whole workspace."),
    ] = None,
    *,
    workspace: WorkspaceFolder = WORKSPACE,
    repair: Annotated[bool, typer.Option("--repair", help="Recompute damaged shards from their inputs.")] = False,
) -> Report[None]:
    """Check the hashes of stores, runs and models.

    Exits with 3 if a file is damaged.

    Example: dptr verify --repair
    """
    from dptr.cache.stores import verify as check
    from dptr.pipeline.repair import repair as repair_store

    chosen = paths or check.all_in(Workspace(Path(workspace)))
    if not chosen:
        raise UserError(f"no store and no run in {workspace}", "Name the folder of one")
    damages = [damage for path in chosen for damage in check.verify(path)]
    left: list[str] = []
    repaired = 0
    if repair and damages:
        for store, files in check.repairable(damages).items():
            try:
                left += repair_store(store, files)
            except (DptrError, OSError) as error:
                # The damage is listed below, with this as the reason why it remains.
                left.append(f"{store} could not be repaired: {error}")
        before = len(damages)
        damages = [damage for path in chosen for damage in check.verify(path)]
        repaired = before - len(damages)
    if damages:
        listed = "; ".join(f"{damage.path} {damage.problem}" for damage in damages)
        raise DamagedStore(listed, "; ".join(left or dict.fromkeys(damage.advice for damage in damages)))
    text = f"{len(chosen)} checked, no damage" + (f"; {repaired} files repaired" if repaired else "")
    return Report({"out": [str(path) for path in chosen], "rows": len(chosen), "repaired": repaired}, text)


def _engine(
    engine: EngineName, address: str | None, workers: int | None, device: str
) -> AbstractContextManager[Executor]:
    """Yield the executor: a cluster, or this process."""
    if engine == "ray":
        from dptr.pipeline.executors.ray_cluster import joined

        return joined(address, workers, with_gpus=device != "cpu")
    if address or workers:
        raise UserError("--address and --engine-workers need a Ray cluster", "Add --engine ray, or leave them out")
    return nullcontext(IN_PROCESS)
