"""Commands that train: a decoder on text embeddings, a recogniser on labelled crops."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dptr.cache.command_line import Report, command, command_group, figures_of
from dptr.cache.errors import UserError
from dptr.cache.options import Device, OrpFolder, PromptsFolder
from dptr.cache.workspace import Workspace
from dptr.pipeline.device import resolve_device
from dptr.trainer.choices import FmuKind, NoiseDraw, Sampling
from dptr.trainer.commands.options import (
    Changes,
    CharsetName,
    Data,
    DataOption,
    RecipeName,
    RunFolder,
    Seed,
    Steps,
    Track,
    UnitsKind,
    Yes,
    labels_left_out,
    named_data,
    recipe_changes,
    require_gpu,
    training_normalization,
)
from dptr.trainer.commands.starts import encoder_model, recogniser_named, start_run

if TYPE_CHECKING:
    from dptr.cache.stores.neighbours import Neighbours
    from dptr.cache.stores.orp import OrpBank
    from dptr.trainer.recipe import Recipe

commands = command_group()


@command(commands, "pretrain", "Train", in_several_processes=True)
def pretrain(
    workspace: Workspace,
    recipe: RecipeName = "tiny",
    prompts: PromptsFolder = None,
    orp: OrpFolder = None,
    out: RunFolder = None,
    steps: Steps = None,
    seed: Seed = None,
    decoder: Annotated[str | None, typer.Option(help="parseq, nrtr, parallel, ctc or a registered decoder.")] = None,
    noise: Annotated[NoiseDraw | None, typer.Option(help="Source of the noise.")] = None,
    sampling: Annotated[Sampling | None, typer.Option(help="Sample labels uniformly or by corpus count.")] = None,
    track: Track = None,
    changes: Changes = None,
    yes: Yes = False,
    device: Device = "auto",
) -> Report:
    """Pre-train a decoder on text embeddings.

    Rerun an interrupted command to resume it.

    Example: dptr pretrain --recipe tiny --set noise.ratio=0.2
    """
    from dptr.cache.stores.prompts import PromptStore
    from dptr.trainer import pretrain as stage
    from dptr.trainer.recipe import load_recipe
    from dptr.trainer.training import processes, runs

    flags: dict[str, str | None] = {"decoder.kind": decoder, "noise.draw": noise, "pretrain.sampling": sampling}
    settings = load_recipe(recipe, recipe_changes("pretrain", changes, steps, seed, flags))
    chosen = resolve_device(device)
    require_gpu(settings.pretrain, chosen, yes)
    processes.join(settings.pretrain, "pretrain")
    workspace = workspace.with_stores(prompts, orp)
    store = PromptStore(workspace.prompts)
    bank = _open_bank(workspace, settings)
    digest = runs.identity_digest("pretrain", settings, stage.data_identity(store, bank))
    folder = out or processes.by_first(
        lambda: runs.named_folder(workspace.runs, "pretrain", workspace.prompts.resolve().name, digest)
    )
    with processes.first_before_others():
        neighbours = _open_neighbours(workspace, bank, settings)
    if out is None and processes.is_first():
        runs.keep_identity(folder, digest)
    summary = stage.pretrain(store, bank, neighbours, settings, folder, chosen, track)
    metrics = summary.metrics
    text = f"{summary.steps:,} steps; validation accuracy, case-insensitive: {metrics['accuracy']:.1%}"
    if "accuracy_with_noise" in metrics:
        text += f", with noise {metrics['accuracy_with_noise']:.1%}"
    return Report(figures_of(summary), f"{text}\nrun: {summary.out}")


@command(commands, "finetune", "Train", in_several_processes=True)
def finetune(
    workspace: Workspace,
    data: Data = None,
    more_data: DataOption = None,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            help="Pre-trained run, recogniser to adapt (run, model file, `bundled`, "
            "`scripts`), or none (from scratch).",
        ),
    ] = "newest",
    charset: CharsetName = None,
    units: UnitsKind = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="A recipe name or TOML file; default: adapt with --from RECOGNISER, else tiny."),
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
    validation: Annotated[
        list[Path] | None,
        typer.Option(help="Validation crops, repeatable; default: a share of DATA."),
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option(help="Words or lines of your domain for rendering and the lexicon; repeatable.")
    ] = None,
    photos: Annotated[Path | None, typer.Option(help="Background photos of rendered crops.")] = None,
    unlabelled: Annotated[
        list[Path] | None, typer.Option(help="Folders of unlabelled crops for pseudo-labelling; repeatable.")
    ] = None,
    simplified: Annotated[
        bool, typer.Option("--simplified", help="Convert traditional Chinese in labels to simplified.")
    ] = False,
    track: Track = None,
    changes: Changes = None,
    yes: Yes = False,
    device: Device = "auto",
) -> Report:
    """Train a recogniser from labelled crops.

    Start from a pre-trained decoder, or adapt another recogniser. Rerun an interrupted command to resume it.

    Example: dptr finetune crops/ --from bundled --text words.txt
    """
    from dptr.cache.text.charset import Charset
    from dptr.trainer import adapt as adaptation
    from dptr.trainer import finetune as stage
    from dptr.trainer.commands.labelled import Labelled, in_units, labelled
    from dptr.trainer.data.image_features import fixed_by, open_crops, stores_among
    from dptr.trainer.recipe import load_recipe
    from dptr.trainer.training import processes, runs

    paths = named_data(data, more_data)
    name = [*(data or ()), *(more_data or ())][0].resolve().stem
    validated = named_data(validation) if validation else []
    run, encoder_run = start_run(workspace, start), recogniser_named(workspace, encoder)
    stores = stores_among(paths)
    is_adapted = run is not None and run.kind == "finetune" and not stores
    if (text or photos or unlabelled) and not is_adapted:
        raise UserError(
            "--text, --photos and --unlabelled adapt a recogniser", "Name one: --from bundled, or leave them out"
        )
    flags: dict[str, str | None] = {
        "encoder.kind": None if encoder_run else encoder,
        "fmu.kind": fmu,
        "finetune.mix": mix,
    }
    asked = recipe_changes("finetune", changes, steps, seed, flags)
    asked += fixed_by(stores, encoder, changes or [])
    encoder_is_named = encoder_run is not None or any(key.startswith("encoder.kind") for key in asked)
    parts = stage.parts_of(run, encoder_is_named)
    if encoder_run:
        parts["encoder"] = stage.encoder_of(encoder_run)
    settings = load_recipe(recipe or ("adapt" if is_adapted else "tiny"), asked, parts)
    chosen = resolve_device(device)
    require_gpu(settings.finetune, chosen, yes)
    processes.join(settings.finetune, "finetune")
    described, settings = encoder_model(settings)
    stage.require_clip_of(run, settings, described)
    model = encoder_run or described
    known = run.charset if run else stores[0].charset if stores else Charset.named("94")
    # The run to start from, or the store, says how labels are normalised, whatever charset is named.
    characters = replace(Charset.named(charset), unicode=known.unicode) if charset else known
    named = in_units(characters, units, paths, training_normalization(settings, characters, simplified))
    material = None
    if run is not None and is_adapted:
        material = adaptation.Material.read(paths, text or [], photos, unlabelled or [])
        named, settings = adaptation.fitted(paths, material, run, settings, named if charset or units else None)
    normalization = training_normalization(settings, named, simplified)

    def opened(fitting: Charset) -> Labelled:
        images = open_crops(paths, fitting, normalization)
        to_validate = open_crops(validated, fitting, normalization) if validated else None
        identity = stage.data_identity(images, run, to_validate, model)
        if material is not None:
            identity["material"] = material.identity()
        digest = runs.identity_digest("finetune", settings, identity)
        run_folder = out or processes.by_first(lambda: runs.named_folder(workspace.runs, "finetune", name, digest))
        return Labelled(images, to_validate, fitting, run_folder, digest)

    crops = labelled(opened, named, normalization)
    if out is None and processes.is_first():
        runs.keep_identity(crops.run, crops.digest)
    if run is not None and material is not None:
        adapted = adaptation.adapt(
            crops.images, crops.charset, run, settings, crops.run, chosen, track, crops.validation, material
        )
        lines = [*labels_left_out(crops.images), *adapted.lines(), f"run: {adapted.out}"]
        return Report(figures_of(adapted), "\n".join(lines))
    summary = stage.finetune(
        crops.images, crops.charset, run, settings, crops.run, chosen, track, model, crops.validation
    )
    metrics = summary.metrics
    portrait = summary.portrait
    lines = [
        *labels_left_out(crops.images),
        *([f"{len(portrait):,} images taller than wide, such as {portrait[0]}"] if portrait else []),
        f"{summary.steps:,} steps; validation crops read: {metrics['accuracy']:.1%}{_with_36(metrics)}",
        f"run: {summary.out}",
    ]
    return Report(figures_of(summary), "\n".join(lines))


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
