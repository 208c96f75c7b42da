"""Resolution of model names: a run, ``newest``, a model file, a model of the hub, or a bundled recogniser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dptr.cache import hub
from dptr.cache.choices import BUNDLED_RECOGNISERS
from dptr.cache.errors import UserError
from dptr.cache.file_names import RUN_FILE, SAFETENSORS, WEIGHTS_FILE
from dptr.cache.workspace import Workspace

if TYPE_CHECKING:
    from dptr.trainer.training.runs import Run, RunKind, Trained

#: Names the newest run wherever a run is named.
NEWEST = "newest"


def model_path(workspace: Workspace, name: str) -> Path:
    """Return a run's folder or a model's file; ``newest`` is the newest fine-tuned run.

    Raises:
        UserError: there is none of that name.
    """
    if name == NEWEST and not Path(name).exists():
        return newest_run(workspace, "finetune").folder
    from dptr.cache.pictures import IMAGE_SUFFIXES
    from dptr.trainer.model.model_file import RECOGNISERS, from_hub

    if (Path(name) / WEIGHTS_FILE).is_file():  # as a repository of the hub holds it
        return Path(name) / WEIGHTS_FILE
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


def model_at(path: Path) -> Trained:
    """Open the run in a folder, or a model file.

    Raises:
        UserError: it is none. DamagedStore: it cannot be read.
    """
    from dptr.trainer.model.model_file import ModelFile
    from dptr.trainer.training.runs import Run

    return ModelFile.open(path) if path.is_file() else Run.load(path)


def newest_run(workspace: Workspace, kind: RunKind | None = None) -> Run:
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


def start_named(workspace: Workspace, start: str) -> Trained | None:
    """Return what ``--from`` names; ``newest`` is the newest pre-trained run, None stands for ``none``."""
    if start == "none":
        return None
    if start == NEWEST:
        return newest_run(workspace, "pretrain")
    return model_at(model_path(workspace, start))


def recogniser_named(workspace: Workspace, encoder: str | None) -> Trained | None:
    """Return the recogniser that ``--encoder`` names, None where it names a kind of encoder."""
    if encoder is None:
        return None
    if not (encoder in (*BUNDLED_RECOGNISERS, NEWEST) or Path(encoder).exists() or (workspace.runs / encoder).is_dir()):
        return None
    return model_at(model_path(workspace, encoder))


def recogniser_first(workspace: Workspace, names: list[str]) -> tuple[Path, list[str]]:
    """Part arguments into the recogniser that the first may name, the bundled one if it does not, and the rest."""
    from dptr.cache.pictures import IMAGE_SUFFIXES
    from dptr.trainer.model.model_file import BUNDLED

    first = Path(names[0]) if names else None
    if first is None or (first.exists() and first.suffix != SAFETENSORS and not is_model_folder(first)):
        return BUNDLED, names
    # A picture that is not there is reported as such, not as a run.
    if names[0] == "-" or (first.suffix.lower() in IMAGE_SUFFIXES and not first.exists()):
        return BUNDLED, names
    return model_path(workspace, names[0]), names[1:]


def is_model_folder(folder: Path) -> bool:
    """Return whether a folder holds a run, or a model as a repository of the hub does."""
    return (folder / RUN_FILE).is_file() or (folder / WEIGHTS_FILE).is_file()


def name_of(path: Path) -> str:
    """Return how commands name the model at a path: a bundled one by its name, others by the path."""
    from dptr.trainer.model.model_file import RECOGNISERS

    return next((name for name, bundled in RECOGNISERS.items() if bundled == path), str(path))


def kept_in(workspace: Workspace, model: Path) -> Path:
    """Return the folder that keeps what a run or a model file read."""
    return workspace.models / hub.name_of(model) if model.is_file() else model
