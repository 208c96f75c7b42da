"""Finds damage in stores, runs and exported models: every file is read and compared with its hash, or its own seal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import (
    CHECKPOINTS_FOLDER,
    INDEX_FILE,
    LEXICON_FILE,
    MANIFEST_FILE,
    MANIFEST_LOG,
    NEIGHBOURS_ARRAY,
    NEIGHBOURS_TABLE,
    PHOTOS_FILE,
    PREDICTIONS_FOLDER,
    PREFIX_FILE,
    QUARANTINE_FILE,
    RECIPE_FILE,
    ROWS_FILE,
    RUN_FILE,
    STATE_FILE,
    is_index_file,
)
from dptr.cache.progress import note, progress
from dptr.cache.stores import sealed
from dptr.cache.stores.file_record import FileRecord
from dptr.cache.stores.files import sha256_of
from dptr.cache.stores.invariants import contradictions
from dptr.cache.stores.manifest import Manifest
from dptr.cache.workspace import Workspace

_FIRST_SHARD = "part-00000"
_SEALED_SUFFIXES = (".safetensors", ".onnx")


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
_MENDED_BY = {
    INDEX_FILE: "`dptr mine-neighbours` and `dptr build-orp-bank` build it again",
    NEIGHBOURS_TABLE: "`dptr mine-neighbours` searches them again",
    NEIGHBOURS_ARRAY: "`dptr mine-neighbours` searches them again",
    PHOTOS_FILE: "`dptr build-orp-bank` with the same photos writes it again",
    QUARANTINE_FILE: "The command that made the store writes it again",
    ROWS_FILE: "`dptr verify --repair`, or the next training, writes it again",
}
_MENDED_BY_READING = "`dptr evaluate` with the same data, or the command that trained, writes it again"
_TRAIN_ON = "Train again into another folder, or restore it from a copy"


def all_in(workspace: Workspace) -> list[Path]:
    """Return the stores and the runs of a workspace, those of its ablations among them."""
    stores = [store for store in (workspace.prompts, workspace.orp, workspace.word_crops) if is_store(store)]
    folders = [folder for runs in (workspace.runs, workspace.ablations / "runs") for folder in sorted(runs.glob("*"))]
    return stores + [folder for folder in folders if is_run(folder)]


def is_store(folder: Path) -> bool:
    """Return whether ``folder`` holds something of a store, be it without its manifest."""
    marks = (MANIFEST_FILE, PREFIX_FILE, f"{_FIRST_SHARD}.arrow", f"{_FIRST_SHARD}.parquet")
    return any((folder / name).is_file() for name in marks)


def is_run(folder: Path) -> bool:
    """Return whether ``folder`` holds something of a run, be it without its description."""
    return (folder / RUN_FILE).is_file() or (folder / RECIPE_FILE).is_file() or (folder / CHECKPOINTS_FOLDER).is_dir()


def verify(path: Path) -> list[Damage]:
    """Check a store, a run or an exported model; an empty list means that every file is as it was written.

    Raises:
        UserError: ``path`` is none of them, or of a newer format.
    """
    if path.is_file():
        return _of_model(path)
    if is_store(path):
        return _of_store(path)
    if is_run(path):
        return list(_of_run(path))
    raise UserError(f"{path} is no store, no run and no exported model", "Name the folder or the file of one")


def repairable(damages: Iterable[Damage]) -> dict[Path, set[str]]:
    """Return, for each store, its damaged files that can be computed again: those of shards, shared states, rows."""
    found: dict[Path, set[str]] = {}
    for damage in damages:
        if damage.shard is not None or damage.file in (PREFIX_FILE, ROWS_FILE):
            found.setdefault(damage.folder, set()).add(damage.file)
    return found


def _of_store(folder: Path) -> list[Damage]:
    if not (folder / MANIFEST_FILE).is_file():
        advice = "Restore it from a copy, or run the command that made the store again, which begins anew"
        return [Damage(folder, MANIFEST_FILE, None, "is missing", advice)]
    try:
        manifest = Manifest.read(folder)
    except DamagedStore as error:
        name = MANIFEST_LOG if error.problem.startswith(f"{folder / MANIFEST_LOG} ") else MANIFEST_FILE
        return [Damage(folder, name, None, error.problem.removeprefix(f"{folder / name} "))]
    listed: list[tuple[str, str | None, FileRecord]] = [(name, None, known) for name, known in manifest.files.items()]
    for shard in manifest.shards:
        listed += [(name, shard.name, known) for name, known in shard.files.items()]
    found: list[Damage] = []
    with progress(f"checking {folder}", sum(known.bytes for _, _, known in listed), "bytes") as bar:
        for name, shard_name, known in listed:
            if problem := known.problem(folder / name):
                found.append(Damage(folder, name, shard_name, problem, _advice_for(name)))
            bar.advance(known.bytes)
    # Between whole files alone: what is damaged contradicts everything.
    broken = {damage.file for damage in found}
    return found + [Damage(folder, *told) for told in contradictions(folder, manifest, broken)]


def _advice_for(name: str) -> str:
    return _MENDED_BY.get(INDEX_FILE if is_index_file(name) else name, _REPAIRABLE)


def _of_run(folder: Path) -> Iterator[Damage]:
    """Check a run's description, checkpoints, tables and exported models; logs only ever grow and have no hash."""
    needed = False
    try:
        needed = sealed.read_json(folder / RUN_FILE).get("format_version", 1) > 1
    except FileNotFoundError:
        yield Damage(folder, RUN_FILE, None, "is missing", _TRAIN_ON)
    except DamagedStore as error:
        yield Damage(folder, RUN_FILE, None, error.problem.removeprefix(f"{folder / RUN_FILE} "), _TRAIN_ON)
    if not (folder / RECIPE_FILE).is_file():
        yield Damage(folder, RECIPE_FILE, None, "is missing", _TRAIN_ON)
    elif problem := _seal_problem(folder / RECIPE_FILE, needed):
        yield Damage(folder, RECIPE_FILE, None, problem, _TRAIN_ON)
    if (folder / LEXICON_FILE).is_file() and (problem := _seal_problem(folder / LEXICON_FILE, True)):
        yield Damage(folder, LEXICON_FILE, None, problem, _TRAIN_ON)
    checkpoints = folder / CHECKPOINTS_FOLDER
    for checkpoint in sorted(path for path in checkpoints.glob("*") if path.is_dir() and path.name[0] != "."):
        yield from _of_checkpoint(folder, checkpoint)
    for table in _tables_of(folder):
        if problem := _seal_problem(table):
            yield Damage(folder, str(table.relative_to(folder)), None, problem, _MENDED_BY_READING)
    for model in sorted(path for path in folder.iterdir() if path.suffix in _SEALED_SUFFIXES):
        yield from _of_model(model)


def _tables_of(folder: Path) -> list[Path]:
    refused = folder / QUARANTINE_FILE
    return [refused] * refused.is_file() + sorted((folder / PREDICTIONS_FOLDER).glob("*.parquet"))


def _of_checkpoint(folder: Path, checkpoint: Path) -> Iterator[Damage]:
    state = f"{CHECKPOINTS_FOLDER}/{checkpoint.name}/{STATE_FILE}"
    advice = "The run's other checkpoint is used in its place where there is one; the same command trains on from it"
    try:
        files = dict(sealed.read_json(folder / state)["files"])
    except FileNotFoundError:
        yield Damage(folder, state, None, "is missing", advice)
        return
    except (DamagedStore, KeyError, TypeError, ValueError) as error:
        problem = error.problem if isinstance(error, DamagedStore) else f"cannot be read ({error})"
        yield Damage(folder, state, None, problem.removeprefix(f"{folder / state} "), advice)
        return
    for name, digest in files.items():
        path = checkpoint / name
        if not path.is_file():
            yield Damage(folder, str(path.relative_to(folder)), None, "is missing", advice)
        elif sha256_of(path) != digest:
            yield Damage(folder, str(path.relative_to(folder)), None, "is damaged: its contents have changed", advice)


def _of_model(path: Path) -> list[Damage]:
    if path.suffix not in _SEALED_SUFFIXES:
        raise UserError(f"{path} is no exported model", f"Name a store, a run, or a {' or '.join(_SEALED_SUFFIXES)}")
    problem = _seal_problem(path)
    if problem is None and sealed.is_sealed(path) is None:
        note(f"{path} has no hash in it: an earlier dptr, or another program, wrote it")
    return [Damage(path.parent, path.name, None, problem, "Export it again")] if problem else []


def _seal_problem(path: Path, needed: bool | None = None) -> str | None:
    """Return what a file's seal tells; where it is not known whether one is needed, its metadata says so."""
    try:
        if needed is None:
            sealed.require_whole(path)
        else:
            sealed.require_sealed(path, needed)
        return None
    except DamagedStore as error:
        return error.problem.removeprefix(f"{path} ")
    except OSError as error:
        return f"cannot be read: {error.strerror}"
