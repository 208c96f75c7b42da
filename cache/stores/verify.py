"""Finds damage in stores, runs and models: every file is read and compared with its hash, or its own checksum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import (
    CHECKPOINTS_FOLDER,
    INDEX_FILE,
    LEXICON_FILE,
    MANIFEST_FILE,
    NEIGHBOURS_ARRAY,
    NEIGHBOURS_TABLE,
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
from dptr.cache.stores.manifest import FileRecord, Manifest
from dptr.cache.workspace import Workspace

_FIRST_SHARD = "part-00000"
_CHECKSUMMED_SUFFIXES = (".safetensors", ".onnx")


@dataclass(frozen=True)
class Damage:
    """One file that is not what was committed.

    Attributes:
        folder: the store, the run, or the model's.
        file: the file's name in it.
        shard: the shard it belongs to, or None for the manifest, store-wide files, and files of runs.
        problem: what is wrong.
        advice: what to do about it.
    """

    folder: Path
    file: str
    shard: str | None
    problem: str
    advice: str = "Restore it from a copy, or make it again"

    @property
    def path(self) -> Path:
        """Where the file is, or ought to be."""
        return self.folder / self.file


_REPAIRABLE = "`dptr verify --repair` computes it again where the inputs are still there"
_REPAIRED_BY = {
    INDEX_FILE: "`dptr mine-neighbours` and `dptr build-orp-bank` build it again",
    NEIGHBOURS_TABLE: "`dptr mine-neighbours` searches them again",
    NEIGHBOURS_ARRAY: "`dptr mine-neighbours` searches them again",
    QUARANTINE_FILE: "The command that made the store writes it again",
    ROWS_FILE: "`dptr verify --repair`, or the next training, writes it again",
}
_REPAIRED_BY_READING = "`dptr evaluate` with the same data, or the command that trained, writes it again"
_TRAIN_ON = "Train again into another folder, or restore it from a copy"


def all_in(workspace: Workspace) -> list[Path]:
    """Return the stores and the runs of a workspace, and the folders of what its models read."""
    stores = [store for store in (workspace.prompts, workspace.orp, workspace.image_features) if is_store(store)]
    runs = [folder for folder in sorted(workspace.runs.glob("*")) if is_run(folder)]
    return stores + runs + [folder.parent for folder in sorted(workspace.models.glob(f"*/{PREDICTIONS_FOLDER}"))]


def is_store(folder: Path) -> bool:
    """Return whether ``folder`` holds something of a store, be it without its manifest."""
    marks = (MANIFEST_FILE, PREFIX_FILE, f"{_FIRST_SHARD}.arrow", f"{_FIRST_SHARD}.parquet")
    return any((folder / name).is_file() for name in marks)


def is_run(folder: Path) -> bool:
    """Return whether ``folder`` holds something of a run, be it without its description."""
    return (folder / RUN_FILE).is_file() or (folder / RECIPE_FILE).is_file() or (folder / CHECKPOINTS_FOLDER).is_dir()


def verify(path: Path) -> list[Damage]:
    """Check a store, a run, what a model read, or an exported model; an empty list: every file is as it was written.

    Raises:
        UserError: ``path`` is none of them, or of another format.
    """
    if path.is_file():
        return _of_model(path)
    if is_store(path):
        return _of_store(path)
    if is_run(path):
        return list(_of_run(path))
    if (path / PREDICTIONS_FOLDER).is_dir():
        return list(_of_tables(path))
    raise UserError(f"{path} is neither a store, a run nor a model file", "Name the folder or the file of one")


def repairable(damages: Iterable[Damage]) -> dict[Path, set[str]]:
    """Return, for each store, its damaged files that can be recomputed: shards, shared embeddings, rows."""
    found: dict[Path, set[str]] = {}
    for damage in damages:
        if damage.shard is not None or damage.file in (PREFIX_FILE, ROWS_FILE):
            found.setdefault(damage.folder, set()).add(damage.file)
    return found


def _of_store(folder: Path) -> list[Damage]:
    if not (folder / MANIFEST_FILE).is_file():
        advice = "Restore it from a copy, or rerun the command that made the store, which starts over"
        return [Damage(folder, MANIFEST_FILE, None, "is missing", advice)]
    try:
        manifest = Manifest.read(folder)
    except DamagedStore as error:
        return [Damage(folder, MANIFEST_FILE, None, error.problem.removeprefix(f"{folder / MANIFEST_FILE} "))]
    listed: list[tuple[str, str | None, FileRecord]] = [(name, None, known) for name, known in manifest.files.items()]
    for shard in manifest.shards:
        listed += [(name, shard.name, known) for name, known in shard.files.items()]
    found: list[Damage] = []
    with progress(f"checking {folder}", sum(known.bytes for _, _, known in listed), "bytes") as bar:
        for name, shard_name, known in listed:
            if problem := known.problem(folder / name):
                found.append(Damage(folder, name, shard_name, problem, _advice_for(name)))
            bar.advance(known.bytes)
    return found


def _advice_for(name: str) -> str:
    return _REPAIRED_BY.get(name, _REPAIRABLE)


def _of_run(folder: Path) -> Iterator[Damage]:
    """Check a run's description, checkpoints, tables and exported models; logs only ever grow and have no hash."""
    for name in (RUN_FILE, RECIPE_FILE):
        if problem := _checksum_problem(folder / name, needed=True):
            yield Damage(folder, name, None, problem, _TRAIN_ON)
    if (folder / LEXICON_FILE).is_file() and (problem := _checksum_problem(folder / LEXICON_FILE, needed=True)):
        yield Damage(folder, LEXICON_FILE, None, problem, _TRAIN_ON)
    checkpoints = folder / CHECKPOINTS_FOLDER
    for checkpoint in sorted(path for path in checkpoints.glob("*") if path.is_dir() and path.name[0] != "."):
        yield from _of_checkpoint(folder, checkpoint)
    yield from _of_tables(folder)
    for model in sorted(path for path in folder.iterdir() if path.suffix in _CHECKSUMMED_SUFFIXES):
        yield from _of_model(model)


def _of_tables(folder: Path) -> Iterator[Damage]:
    """Check the predictions on data sets, and their rejected crops."""
    rejected = folder / QUARANTINE_FILE
    tables = [rejected] if rejected.exists() else []
    for table in (*tables, *sorted((folder / PREDICTIONS_FOLDER).glob("*.parquet"))):
        if problem := _checksum_problem(table, needed=True):
            yield Damage(folder, str(table.relative_to(folder)), None, problem, _REPAIRED_BY_READING)


def _of_checkpoint(folder: Path, checkpoint: Path) -> Iterator[Damage]:
    state = checkpoint / STATE_FILE
    advice = "The run's other checkpoint is used in its place where there is one; the same command trains on from it"
    problem, files = _checksum_problem(state, needed=True), {}
    if problem is None:
        files = checksummed.read_json(state).get("files", {})
        problem = None if isinstance(files, dict) else "lists no files"
    if problem is not None:
        yield Damage(folder, str(state.relative_to(folder)), None, problem, advice)
        return
    for name, digest in files.items():
        file = checkpoint / name
        if problem := problem_of(file, partial(_compare, file, digest)):
            yield Damage(folder, str(file.relative_to(folder)), None, problem, advice)


def _compare(path: Path, sha256: str) -> str | None:
    return None if sha256_of(path) == sha256 else CHANGED


def _of_model(path: Path) -> list[Damage]:
    if path.suffix not in _CHECKSUMMED_SUFFIXES:
        raise UserError(
            f"{path} is not a model file", f"Name a store, a run, or a {' or '.join(_CHECKSUMMED_SUFFIXES)}"
        )
    problem = _checksum_problem(path)
    if problem is None and checksummed.has_checksum(path) is None:
        note(f"{path} has no hash: another program wrote it")
    return [Damage(path.parent, path.name, None, problem, "Export it again")] if problem else []


def _checksum_problem(path: Path, needed: bool = False) -> str | None:
    """Return what is wrong with a file by its checksum; where none is ``needed``, metadata says whether it has one."""

    def check() -> None:
        if not needed:
            checksummed.require_whole(path)
        elif path.suffix == ".json":
            checksummed.read_json(path)
        else:
            checksummed.require_checksum(path)

    return problem_of(path, check)
