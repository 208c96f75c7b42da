"""Which files of a workspace are which table: stores by their manifests, refusals, readings, and what runs log."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from dptr.cache.errors import DptrError
from dptr.cache.file_names import (
    MANIFEST_FILE,
    METRICS_FILE,
    NEIGHBOURS_TABLE,
    PREDICTIONS_FOLDER,
    QUARANTINE_FILE,
    RUN_FILE,
)
from dptr.cache.progress import note
from dptr.cache.stores import sealed
from dptr.cache.stores.manifest import Manifest, StoreKind
from dptr.cache.workspace import Workspace


def parquet_tables(workspace: Workspace) -> dict[str, list[Path]]:
    """Return the Parquet files of each table there is; a store that is damaged is named and left out."""
    stores: tuple[tuple[Path, StoreKind, str, str], ...] = (
        (workspace.prompts, "prompts", "prompts", "refused_text"),
        (workspace.orp, "orp", "crops", "refused_photos"),
        (workspace.word_crops, "word_crops", "word_crops", "refused_crops"),
    )
    found: dict[str, list[Path]] = {}
    for folder, kind, rows, refused in stores:
        found |= _store_tables(folder, kind, rows, refused)
    found["refused_words"] = [*found.get("refused_crops", []), *_in_runs(workspace, QUARANTINE_FILE)]
    found["predictions"] = _in_runs(workspace, f"{PREDICTIONS_FOLDER}/*.parquet")
    return {name: files for name, files in found.items() if files}


def json_tables(workspace: Workspace) -> dict[str, list[Path]]:
    """Return the JSON files of ``runs`` and ``metrics``; those that cannot be read are named and left out."""
    folders = workspace.run_folders()
    descriptions = [folder / RUN_FILE for folder in folders]
    described = [path for path in descriptions if _can_be_used(path, sealed.read_json, "runs")]
    logs = [folder / METRICS_FILE for folder in folders if _has_metrics(folder / METRICS_FILE)]
    return {name: files for name, files in (("runs", described), ("metrics", logs)) if files}


def json_query(name: str, files: list[Path]) -> str:
    """Return the query that reads ``runs`` or ``metrics`` from their files; ``run`` is the folder's name."""
    # A line that cannot be read comes back as a row of nulls.
    options, chosen = {
        "runs": ("format = 'auto'", ""),
        "metrics": ("format = 'newline_delimited', ignore_errors = true", " where step is not null"),
    }[name]
    return (
        "select parse_filename(parse_path(filename)[-2]) as run, "
        "columns(lambda name: name not in ('filename', 'seal')) from read_json("
        f"{listed(files)}, {options}, filename = true, union_by_name = true, sample_size = -1){chosen}"
    )


def listed(files: list[Path]) -> str:
    """Return the files as a list of SQL."""
    return "[" + ", ".join(quoted(str(path.absolute())) for path in files) + "]"


def quoted(text: str) -> str:
    """Return a text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def run_of_predictions(path: Path) -> str:
    """Return the name of the run, or model, that read what is in a file of predictions."""
    return path.parent.parent.name


def _in_runs(workspace: Workspace, pattern: str) -> list[Path]:
    there = [path for folder in (workspace.runs, workspace.models) for path in sorted(folder.glob(f"*/{pattern}"))]
    return [path for path in there if path.is_file() and _can_be_used(path, sealed.require_whole)]


def _store_tables(folder: Path, kind: StoreKind, rows: str, refused: str) -> dict[str, list[Path]]:
    if not (folder / MANIFEST_FILE).is_file():
        return {}
    try:
        manifest = Manifest.load(folder, kind)
        found = {rows: manifest.catalogues(folder)}
    except DptrError as error:
        note(f"left out: {error}")
        return {}
    for name, view in ((QUARANTINE_FILE, refused), (NEIGHBOURS_TABLE, "neighbours")):
        if name in manifest.files and not manifest.is_intact(folder, name):
            note(f"left out: {view}, because {folder / name} is not what was written. See `dptr verify {folder}`")
        elif (folder / name).is_file():
            found[view] = [folder / name]
    return found


def _can_be_used(path: Path, check: Callable[[Path], object], table: str = "") -> bool:
    """Return whether a file passes a check; say so where it does not."""
    left_out = f"left out of {table}" if table else "left out"
    try:
        check(path)
        return True
    except OSError as error:
        note(f"{left_out}: {path} cannot be read ({error.strerror})")
    except DptrError as error:
        note(f"{left_out}: {error.problem}")
    return False


def _has_metrics(path: Path) -> bool:
    if not path.is_file():
        return False
    lines = path.read_bytes().split(b"\n")
    # The last piece is empty, or a line that a training is about to finish.
    good = [_is_step(line) for line in lines[:-1] if line.strip()]
    if not all(good):
        note(f"left out of metrics: {len(good) - sum(good)} lines of {path}, which cannot be read")
    return any(good)


def _is_step(line: bytes) -> bool:
    try:
        value = json.loads(line)
        return isinstance(value, dict) and isinstance(value.get("step"), int)
    except (ValueError, RecursionError):
        return False
