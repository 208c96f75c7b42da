"""Finds damage in stores, runs and models: every file is read and compared with its hash, or its own checksum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import (
    CHECKPOINTS_FOLDER,
    LEXICON_FILE,
    MANIFEST_FILE,
    PREDICTIONS_FOLDER,
    PREFIX_FILE,
    QUARANTINE_FILE,
    RECIPE_FILE,
    ROWS_FILE,
    RUN_FILE,
    STATE_FILE,
)
from dptr.cache.progress import note, progress
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import CHANGED, problem_of, sha256_of
from dptr.cache.stores.manifest import Manifest
from dptr.cache.workspace import Workspace

_MODEL_SUFFIXES = (".safetensors", ".onnx")
_SHARDS = "part-"

_REPAIR = "`dptr verify --repair` computes it again from the original inputs"
_MAKE_AGAIN = "Restore it from a copy, or run the command that wrote it again"
_TRAIN_AGAIN = "Train again into another folder, or restore it from a copy"
_TRAIN_ON = "Rerun the command: training resumes from the run's other checkpoint, if there is one"


@dataclass(frozen=True)
class Damage:
    """One damaged file.

    Attributes:
        folder: of the store, the run or the model. file: its name there. problem, advice: for people.
    """

    folder: Path
    file: str
    problem: str
    advice: str = _MAKE_AGAIN

    @property
    def path(self) -> Path:
        """Path of the file, which may be missing."""
        return self.folder / self.file

    @property
    def can_be_repaired(self) -> bool:
        """Whether it is a store's shard, shared embeddings or rows, which can be computed again."""
        return self.advice == _REPAIR


def all_in(workspace: Workspace) -> list[Path]:
    """Return the stores and runs of a workspace, and the folders of its models' predictions."""
    stores = [store for store in (workspace.prompts, workspace.orp, workspace.image_features) if is_store(store)]
    runs = [folder for folder in sorted(workspace.runs.glob("*")) if is_run(folder)]
    return stores + runs + [folder.parent for folder in sorted(workspace.models.glob(f"*/{PREDICTIONS_FOLDER}"))]


def is_store(folder: Path) -> bool:
    """Return whether ``folder`` holds a store, possibly without its manifest."""
    return any((folder / name).is_file() for name in (MANIFEST_FILE, PREFIX_FILE, f"{_SHARDS}00000.arrow"))


def is_run(folder: Path) -> bool:
    """Return whether ``folder`` holds a run, possibly without its description."""
    return (folder / RUN_FILE).is_file() or (folder / RECIPE_FILE).is_file() or (folder / CHECKPOINTS_FOLDER).is_dir()


def verify(path: Path) -> list[Damage]:
    """Check a store, a run, a model's predictions or an exported model; return its damaged files.

    Raises:
        UserError: ``path`` is none of them, or has another format.
    """
    if path.is_file() and path.suffix in _MODEL_SUFFIXES:
        if checksummed.has_checksum(path) is None:
            note(f"{path} has no hash: another program wrote it")
        return list(_damaged(path.parent, path.name, partial(checksummed.require_whole, path)))
    if is_store(path):
        return list(_of_store(path))
    if is_run(path) or (path / PREDICTIONS_FOLDER).is_dir():
        return list(_of_run(path))
    raise UserError(f"{path} is neither a store, a run nor a model file", "Name the folder or the file of one")


def repairable(damages: Iterable[Damage]) -> dict[Path, set[str]]:
    """Return, for each store, its damaged files that can be computed again."""
    found: dict[Path, set[str]] = {}
    for damage in damages:
        if damage.can_be_repaired:
            found.setdefault(damage.folder, set()).add(damage.file)
    return found


def _of_store(folder: Path) -> Iterator[Damage]:
    try:
        listed = Manifest.read(folder).every_file()
    except FileNotFoundError:
        yield Damage(folder, MANIFEST_FILE, "is missing")
        return
    except DamagedStore as error:
        yield Damage(folder, MANIFEST_FILE, error.problem.removeprefix(f"{folder / MANIFEST_FILE} "))
        return
    with progress(f"checking {folder}", sum(known.bytes for known in listed.values()), "bytes") as bar:
        for name, known in listed.items():
            if problem := known.problem(folder / name):
                computed = name.startswith(_SHARDS) or name in (PREFIX_FILE, ROWS_FILE)
                yield Damage(folder, name, problem, _REPAIR if computed else _MAKE_AGAIN)
            bar.advance(known.bytes)


def _of_run(folder: Path) -> Iterator[Damage]:
    """Check a run's description, checkpoints, tables and exported models; logs have no hash."""
    described = [folder / RUN_FILE, folder / RECIPE_FILE] if is_run(folder) else []
    for file in (*described, *folder.glob(LEXICON_FILE)):
        check = checksummed.read_json if file.suffix == ".json" else checksummed.require_checksum
        yield from _damaged(folder, file.name, partial(check, file), _TRAIN_AGAIN)
    for checkpoint in sorted(folder.glob(f"{CHECKPOINTS_FOLDER}/[!.]*/")):
        yield from _of_checkpoint(folder, checkpoint / STATE_FILE)
    for file in (*folder.glob(QUARANTINE_FILE), *sorted(folder.glob(f"{PREDICTIONS_FOLDER}/*.parquet"))):
        name = str(file.relative_to(folder))
        yield from _damaged(folder, name, partial(checksummed.require_checksum, file))
    for file in sorted(folder.glob("*.*")):
        if file.suffix in _MODEL_SUFFIXES:
            yield from _damaged(folder, file.name, partial(checksummed.require_whole, file))


def _of_checkpoint(folder: Path, state: Path) -> Iterator[Damage]:
    of_state = list(_damaged(folder, str(state.relative_to(folder)), partial(checksummed.read_json, state), _TRAIN_ON))
    yield from of_state
    for name, digest in () if of_state else checksummed.read_json(state)["files"].items():
        file = state.with_name(name)
        yield from _damaged(folder, str(file.relative_to(folder)), partial(_compare, file, digest), _TRAIN_ON)


def _compare(path: Path, sha256: str) -> str | None:
    return None if sha256_of(path) == sha256 else CHANGED


def _damaged(folder: Path, name: str, check: Callable[[], object], advice: str = _MAKE_AGAIN) -> Iterator[Damage]:
    """Yield the damage of one file, if the check raises or returns a problem."""
    if problem := problem_of(folder / name, check):
        yield Damage(folder, name, problem, advice)
