"""What a training starts from, as commands name it: a run, a model file, the bundled recogniser, an encoder's model."""

from pathlib import Path
from typing import TYPE_CHECKING

from dptr.cache import hub
from dptr.cache.choices import BUNDLED_RECOGNISERS
from dptr.cache.errors import UserError
from dptr.cache.file_names import SAFETENSORS
from dptr.cache.workspace import Workspace

#: Names the newest run wherever a run is named.
NEWEST = "newest"

if TYPE_CHECKING:
    from dptr.trainer.recipe import Recipe
    from dptr.trainer.training.runs import Run, RunKind, Trained


def start_run(workspace: Workspace, start: str) -> "Trained | None":
    """Return what ``--from`` names; None for `none`."""
    if start == "none":
        return None
    if start == NEWEST:
        return newest_run(workspace, "pretrain")
    return model_named(workspace, start)


def newest_run(workspace: Workspace, kind: "RunKind | None" = None) -> "Run":
    """Return the newest run of a kind, or of any, that has weights.

    Raises:
        UserError: there is none.
    """
    from dptr.trainer.training.runs import newest

    found = newest(workspace.run_folders(), kind)
    if found is None and kind == "pretrain":
        raise UserError(
            f"no pre-trained run in {workspace.runs}",
            "Run `dptr pretrain` first, or start from the bundled recogniser (--from bundled) or from scratch (none)",
        )
    if found is None:
        raise UserError(f"no run in {workspace.runs}", "Run `dptr finetune` first, or name another workspace")
    return found


def recogniser_named(workspace: Workspace, encoder: str | None) -> "Trained | None":
    """Return the recogniser that ``--encoder`` names, None where it names a kind of encoder."""
    if encoder is None:
        return None
    if not (encoder in (*BUNDLED_RECOGNISERS, NEWEST) or Path(encoder).exists() or (workspace.runs / encoder).is_dir()):
        return None
    return model_named(workspace, encoder)


def model_named(workspace: Workspace, name: str) -> "Trained":
    """Return a run by its folder or name, a model file, one of the hub, or a bundled recogniser.

    Raises:
        UserError: there is none. DamagedStore: it cannot be read.
    """
    from dptr.trainer.model.model_file import ModelFile
    from dptr.trainer.training.runs import Run

    path = model_path(workspace, name)
    return ModelFile.open(path) if path.is_file() else Run.load(path)


def model_path(workspace: Workspace, name: str) -> Path:
    """Return the folder or file of what :func:`model_named` describes; ``newest`` is the newest fine-tuned run.

    Raises:
        UserError: there is none.
    """
    if name == NEWEST and not Path(name).exists():
        return newest_run(workspace, "finetune").folder
    from dptr.cache.pictures import IMAGE_SUFFIXES
    from dptr.trainer.model.model_file import RECOGNISERS, from_hub

    try:
        return workspace.find_run(name)
    except UserError as missing:
        if name in RECOGNISERS:
            return RECOGNISERS[name]
        if not hub.is_id(name) or Path(name).suffix in (SAFETENSORS, *IMAGE_SUFFIXES):
            raise
        try:
            return from_hub(name)
        except UserError as error:
            raise UserError(f"{missing.problem}, and {error.problem}", missing.advice) from error


def name_of(path: Path) -> str:
    """Return how commands name the model at a path: a bundled one by its name, others by the path."""
    from dptr.trainer.model.model_file import RECOGNISERS

    return next((name for name, bundled in RECOGNISERS.items() if bundled == path), str(path))


def encoder_model(recipe: "Recipe") -> "tuple[Path | None, Recipe]":
    """Find the model that the recipe's encoder starts from, if any, and let the recipe describe it."""
    from dptr.pipeline.clip.clip_files import find_clip
    from dptr.trainer.model.encoders import describe, model_of

    kind = recipe.encoder.kind
    name = model_of(kind)
    if name is None:
        return None, recipe
    folder = find_clip(name)
    return folder, recipe.replace("encoder", config=describe(kind, folder))
