"""Commands that train: a decoder on text embeddings, a recogniser on labelled crops."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dptr.cache.choices import BUNDLED_CLIPS, Units
from dptr.cache.command_line import Report, command, command_group, figures_of
from dptr.cache.errors import UserError
from dptr.cache.options import WORKSPACE, AnyPath, Device, OrpFolder, Paths, PromptsFolder, WorkspaceFolder, paths_of
from dptr.cache.progress import note
from dptr.cache.workspace import Workspace
from dptr.pipeline.options import resolve_device
from dptr.trainer.choices import FmuKind, NoiseDraw, Sampling
from dptr.trainer.commands.options import (
    Changes,
    Data,
    RunFolder,
    Seed,
    Steps,
    Track,
    Yes,
    labels_left_out,
    named_data,
    recipe_changes,
)
from dptr.trainer.named_models import recogniser_named, start_named

if TYPE_CHECKING:
    from dptr.cache.stores.neighbours import Neighbours
    from dptr.cache.stores.orp import OrpBank
    from dptr.cache.text.charset import Charset
    from dptr.cache.text.normalization import Normalization
    from dptr.trainer.finetune import FinetuneSummary
    from dptr.trainer.recipe import Recipe, TrainingSettings
    from dptr.trainer.training.runs import TrainingSummary

commands = command_group()

#: Number of rows that take a CPU days, and the width from which a decoder is too wide for a bundled CLIP.
_ROWS_FOR_A_GPU = 5_000_000
_WIDE_DECODER = 384


@command(commands, "pretrain", "Train", in_several_processes=True)
def pretrain(
    recipe: Annotated[AnyPath, typer.Option("--recipe", help="tiny, small, paper, or a TOML file.")] = "tiny",
    *,
    workspace: WorkspaceFolder = WORKSPACE,
    prompts: PromptsFolder = None,
    orp: OrpFolder = None,
    out: RunFolder = None,
    steps: Steps = None,
    seed: Seed = None,
    decoder: Annotated[str | None, typer.Option(help="parseq, nrtr, parallel, ctc or a registered decoder.")] = None,
    noise: Annotated[NoiseDraw | None, typer.Option(help="Source of the noise.")] = None,
    sampling: Annotated[Sampling | None, typer.Option(help="Sample labels uniformly or by corpus count.")] = None,
    track: Track = None,
    set: Changes = None,
    yes: Yes = False,
    device: Device = "auto",
) -> "Report[TrainingSummary]":
    """Pre-train a decoder on text embeddings.

    Rerun an interrupted command to resume it.

    Example: dptr pretrain --recipe tiny --set noise.ratio=0.2
    """
    from dptr.cache.stores.prompts import PromptStore
    from dptr.trainer import pretrain as stage
    from dptr.trainer.recipe import load_recipe
    from dptr.trainer.training import processes, runs

    options: dict[str, object] = {"pretrain.steps": steps, "pretrain.seed": seed, "pretrain.sampling": sampling}
    options |= {"decoder.kind": decoder, "noise.draw": noise}
    settings = load_recipe(str(recipe), recipe_changes(set, options))
    chosen = resolve_device(device)
    _require_gpu(settings.pretrain, chosen, yes)
    processes.join(settings.pretrain, "pretrain")
    place = Workspace.at(workspace, prompts, orp)
    store = PromptStore(place.prompts)
    _warn_of_bundled_clip(settings, store.manifest.identity["encoder"])
    bank = _open_bank(place, settings)
    digest = runs.identity_digest("pretrain", settings, stage.data_identity(store, bank))
    folder = Path(
        out
        or processes.by_first(lambda: runs.named_folder(place.runs, "pretrain", place.prompts.resolve().name, digest))
    )
    with processes.first_before_others():
        neighbours = _open_neighbours(place, bank, settings)
    if out is None and processes.is_first():
        runs.keep_identity(folder, digest)
    summary = stage.pretrain(store, bank, neighbours, settings, folder, chosen, track)
    metrics = summary.metrics
    text = f"{summary.steps:,} steps; validation accuracy, case-insensitive: {metrics['accuracy']:.1%}"
    if "accuracy_with_noise" in metrics:
        text += f", with noise {metrics['accuracy_with_noise']:.1%}"
    return Report(figures_of(summary), f"{text}\nrun: {summary.out}", lambda: summary)


@command(commands, "finetune", "Train", in_several_processes=True)
def finetune(
    data: Data = None,
    *,
    workspace: WorkspaceFolder = WORKSPACE,
    from_: Annotated[
        AnyPath,
        typer.Option(
            "--from",
            help="Pre-trained run (`newest`: the last one), recogniser to adapt (run, model file, `bundled`, "
            "`scripts`), or none (from scratch).",
        ),
    ] = "newest",
    charset: Annotated[
        str | None,
        typer.Option(help="36, 62, 94, a language (ja, ar, …), a file of characters, or several (94+ru)."),
    ] = None,
    units: Annotated[
        Units | None,
        typer.Option(help="Unit of a label; grapheme: clusters are collected from the labels."),
    ] = None,
    recipe: Annotated[
        AnyPath | None,
        typer.Option(help="A recipe name or TOML file; default: adapt with --from RECOGNISER, else tiny."),
    ] = None,
    out: RunFolder = None,
    steps: Steps = None,
    seed: Seed = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="vit, convolution, clip:ID, hf:ID, or the encoder of a recogniser: a run, a "
            "model file, `bundled` or `scripts`."
        ),
    ] = None,
    fmu: Annotated[
        FmuKind | None, typer.Option(help="Feature Merge Unit; none: the decoder attends to all image tokens.")
    ] = None,
    mix: Annotated[str | None, typer.Option(help="Relative sampling rate of each data set, for example 3,1.")] = None,
    validation: Annotated[Paths | None, typer.Option(help="Validation crops; default: a share of DATA.")] = None,
    text: Annotated[
        Paths | None, typer.Option(help="Words or lines of your domain for rendering and the lexicon.")
    ] = None,
    photos: Annotated[AnyPath | None, typer.Option(help="Background photos of rendered crops.")] = None,
    unlabelled: Annotated[Paths | None, typer.Option(help="Folders of unlabelled crops for pseudo-labelling.")] = None,
    simplified: Annotated[
        bool, typer.Option("--simplified", help="Convert traditional Chinese in labels to simplified.")
    ] = False,
    track: Track = None,
    set: Changes = None,
    yes: Yes = False,
    device: Device = "auto",
) -> "Report[FinetuneSummary]":
    """Train a recogniser from labelled crops.

    Start from a pre-trained decoder, or adapt another recogniser. Rerun an interrupted command to resume it.

    Example: dptr finetune crops/ --from bundled --text words.txt
    """
    from dptr.cache.text.charset import Charset
    from dptr.cache.text.normalization import Normalization
    from dptr.pipeline.clip.clip_files import find_clip
    from dptr.trainer import adapt as adaptation
    from dptr.trainer import finetune as stage
    from dptr.trainer.data.image_features import fixed_by, open_crops, stores_among
    from dptr.trainer.model.encoders import describe, model_of
    from dptr.trainer.recipe import load_recipe
    from dptr.trainer.training import processes, runs

    place = Workspace.at(workspace)
    paths, validated = named_data(data), named_data(validation) if validation else []
    start, encoder_start = start_named(place, str(from_)), recogniser_named(place, encoder)
    stores = stores_among(paths)
    is_recogniser = start is not None and start.kind == "finetune" and not stores
    options = {"finetune.steps": steps, "finetune.seed": seed, "finetune.mix": mix, "fmu.kind": fmu}
    changes = recipe_changes(set, options | {"encoder.kind": None if encoder_start else encoder})
    changes += fixed_by(stores, encoder, recipe_changes(set, {}))
    encoder_is_named = encoder_start is not None or any(key.startswith("encoder.kind") for key in changes)
    parts = stage.parts_of(start, encoder_is_named)
    if encoder_start:
        parts["encoder"] = stage.encoder_of(encoder_start)
    settings = load_recipe(str(recipe or ("adapt" if is_recogniser else "tiny")), changes, parts)
    is_adapted = is_recogniser and settings.finetune.adapts
    if (text or photos or unlabelled) and not is_adapted:
        raise UserError(
            "--text, --photos and --unlabelled adapt a recogniser", "Name one: --from bundled, or leave them out"
        )
    chosen = resolve_device(device)
    _require_gpu(settings.finetune, chosen, yes)
    processes.join(settings.finetune, "finetune")
    kind = settings.encoder.kind
    encoder_folder = find_clip(name) if (name := model_of(kind)) else None
    if encoder_folder:
        settings = settings.replace("encoder", config=describe(kind, encoder_folder))
    stage.require_clip_of(start, settings, encoder_folder)
    known = start.charset if start else stores[0].charset if stores else Charset.named("94")
    # Normalisation comes from the run to start from, or from the store, also with a named charset.
    named = replace(Charset.named(charset), unicode=known.unicode) if charset else known
    longest = settings.decoder.max_label_length
    rules = Normalization.of(named, max_label_length=longest, simplified=simplified)
    named = _in_units(named, units, paths, rules)
    material = None
    if start is not None and is_adapted:
        material = adaptation.Material.read(
            paths, paths_of(text), Path(photos) if photos else None, paths_of(unlabelled)
        )
        named, settings = adaptation.fitted(paths, material, start, settings, named if charset or units else None)
    longest = settings.decoder.max_label_length
    normalization = Normalization.of(named, max_label_length=longest, simplified=simplified)
    named = normalization.charset(named)
    images = open_crops(paths, named, normalization)
    to_validate = open_crops(validated, named, normalization) if validated else None
    model = encoder_start or encoder_folder
    identity = stage.data_identity(images, start, to_validate, model)
    if material is not None:
        identity["material"] = material.identity()
    digest = runs.identity_digest("finetune", settings, identity)
    data_name = paths_of(data)[0].resolve().stem
    folder = Path(out or processes.by_first(lambda: runs.named_folder(place.runs, "finetune", data_name, digest)))
    if out is None and processes.is_first():
        runs.keep_identity(folder, digest)
    left_out = labels_left_out(images)
    if start is not None and material is not None:
        adapted = adaptation.adapt(images, named, start, settings, folder, chosen, track, to_validate, material)
        lines = [*left_out, *adapted.lines(), f"run: {adapted.out}"]
        return Report(figures_of(adapted), "\n".join(lines), lambda: adapted)
    summary = stage.finetune(images, named, start, settings, folder, chosen, track, model, to_validate)
    portrait, metrics = summary.portrait, summary.metrics
    lines = [
        *left_out,
        *([f"{len(portrait):,} images taller than wide, such as {portrait[0]}"] if portrait else []),
        f"{summary.steps:,} steps; validation crops read: {metrics['accuracy']:.1%}{_with_36(metrics)}",
        f"run: {summary.out}",
    ]
    return Report(figures_of(summary), "\n".join(lines), lambda: summary)


def _in_units(named: "Charset", units: Units | None, paths: Sequence[Path], rules: "Normalization") -> "Charset":
    """Return the charset ``named`` with labels made of ``units``; None: of its own.

    Grapheme clusters are those of the labels at ``paths`` that its characters can spell.

    Raises:
        UserError: its clusters would have to be taken apart, or labels are in a store, which has counted their units.
    """
    from dptr.cache.crops.dataset import WordImages
    from dptr.cache.text.charset import Charset, clusters_within
    from dptr.cache.text.units import clusters
    from dptr.trainer.data.image_features import stores_among

    if units is None or units == named.units:
        return named
    if units == "codepoint":
        raise UserError("the charset holds grapheme clusters, not code points", "Leave --units out")
    if stores_among(paths):
        raise UserError("a store of crops keeps the units of its charset", "Leave --units out, or train on the crops")
    labels = (sample.label for sample in WordImages.open_as_written(paths).samples)
    found = {cluster for label in labels for cluster in clusters(named.fold_case(rules.apply(label)))}
    return Charset(clusters_within("".join(rules.charset(named).characters), found), "grapheme")


def _require_gpu(settings: "TrainingSettings", device: str, yes: bool) -> None:
    """Reject recipes for a GPU on a CPU, unless ``yes``; warn about other long trainings.

    Raises:
        UserError: the device is a CPU.
    """
    size = f"{settings.steps:,} steps of {settings.batch_size:,} rows are sized for a GPU, and this is a CPU"
    if device != "cpu":
        return
    if settings.needs_gpu and not yes:
        raise UserError(size, "Train on a GPU, or add --yes to train on this CPU")
    if settings.steps * settings.batch_size > _ROWS_FOR_A_GPU:
        note(f"{size}: this takes days; fewer steps or the recipe tiny make it shorter")


def _warn_of_bundled_clip(recipe: "Recipe", clip: str) -> None:
    """Warn about a wide decoder on the embeddings of a small CLIP: it is no more accurate than a narrow one."""
    if clip in BUNDLED_CLIPS and recipe.decoder.dim >= _WIDE_DECODER:
        note(
            f"the prompt store is of the small CLIP `{clip}`, and the recipe's decoder ({recipe.decoder.dim} wide) is "
            "for one of 512 dimensions: embed with the CLIP openai/clip-vit-base-patch16, or use the recipe tiny"
        )


def _with_36(metrics: dict[str, float]) -> str:
    if "accuracy_36" not in metrics:
        return ""
    return f"; with 36 characters {metrics['accuracy_36']:.1%} of the {metrics['words_36']:,.0f} words that have any"


def _open_bank(workspace: Workspace, recipe: "Recipe") -> "OrpBank | None":
    from dptr.cache.file_names import MANIFEST_FILE
    from dptr.cache.stores.orp import OrpBank

    if recipe.noise.ratio == 0:
        return None
    if not (workspace.orp / MANIFEST_FILE).is_file():
        raise UserError(
            f"the recipe adds noise but there is no ORP bank in {workspace.orp}",
            "Run `dptr build-orp-bank PHOTOS`, or train without noise: --set noise.ratio=0",
        )
    return OrpBank(workspace.orp)


def _open_neighbours(workspace: Workspace, bank: "OrpBank | None", recipe: "Recipe") -> "Neighbours | None":
    """Neighbours where the recipe's noise draws from them, mined first when they are missing or outdated."""
    from dptr.cache.stores.neighbours import Neighbours
    from dptr.cache.stores.orp import OrpBank
    from dptr.pipeline.photos.mine_neighbours import mine_neighbours

    if bank is None or not recipe.noise.needs_neighbours:
        return None
    mine_neighbours(workspace.prompts, workspace.orp, recipe.noise.neighbours)
    # Opened anew: mining may have built the bank's index again.
    return Neighbours.open(workspace.prompts, OrpBank(bank.folder))
