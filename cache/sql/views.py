"""DuckDB over everything in a workspace: stores, quarantines, neighbours, runs and their metrics.

DuckDB itself may touch no file. A statement that writes can hide in one that reads (``with x as (copy …) select``), and
whoever may read a folder may write it, too. So catalogues come in as Arrow datasets, which only read, what runs say is
read beforehand, and then DuckDB's access to files is closed for good.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from dptr.cache.errors import DptrError, UserError
from dptr.cache.file_names import (
    ABLATION_ROWS,
    MANIFEST_FILE,
    METRICS_FILE,
    NEIGHBOURS_TABLE,
    QUARANTINE_FILE,
    RUN_FILE,
)
from dptr.cache.progress import note
from dptr.cache.stores.manifest import Manifest, StoreKind
from dptr.cache.workspace import Workspace


def connect(workspace: Workspace, prompts: Path | None = None, orp: Path | None = None) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB with one view per table that exists; it can neither write nor read anything else.

    Views: ``prompts``, ``crops``, ``word_crops``, ``neighbours``, ``refused_text``, ``refused_photos``,
    ``refused_crops``, ``metrics``, ``runs`` and ``ablations``. What is damaged is named and left out.

    Args:
        workspace: where stores and runs are.
        prompts: another prompt store than the workspace's.
        orp: another ORP bank than the workspace's.

    Raises:
        UserError: the workspace holds nothing yet.
    """
    connection = duckdb.connect()
    _read_runs(connection, workspace.run_folders())
    _close(connection)
    stores: tuple[tuple[Path, StoreKind, str, str], ...] = (
        (prompts or workspace.prompts, "prompts", "prompts", "refused_text"),
        (orp or workspace.orp, "orp", "crops", "refused_photos"),
        (workspace.word_crops, "word_crops", "word_crops", "refused_crops"),
    )
    for folder, kind, rows_view, refused_view in stores:
        _add_store(connection, folder, kind, rows_view, refused_view)
    _add_view(connection, "ablations", sorted(workspace.ablations.glob(f"*/{ABLATION_ROWS}")))
    if not tables(connection):
        raise UserError(
            f"nothing to query in {workspace.root}", "Run `dptr embed-text FILE` first, or give --workspace"
        )
    return connection


def tables(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the names of all views."""
    return [str(row[0]) for row in connection.execute("show tables").fetchall()]


def _close(connection: duckdb.DuckDBPyConnection) -> None:
    """Shut DuckDB off from files, extensions, the network and Python's variables, so that no query can open it again.

    It may still spill what does not fit into memory, into a folder of its own that goes with the connection.
    """
    spilled = os.path.join(tempfile.gettempdir(), f"dptr-sql-{os.getpid()}")
    connection.execute(f"set temp_directory = {_quoted(spilled)}")
    connection.execute("set python_enable_replacements = false")
    connection.execute("set autoload_known_extensions = false")
    connection.execute("set autoinstall_known_extensions = false")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")


def _add_store(
    connection: duckdb.DuckDBPyConnection, folder: Path, kind: StoreKind, rows_view: str, refused_view: str
) -> None:
    if not (folder / MANIFEST_FILE).is_file():
        return
    try:
        manifest = Manifest.load(folder, kind)
    except DptrError as error:
        note(f"left out: {error}")
        return
    _add_view(connection, rows_view, [folder / f"{shard.name}.parquet" for shard in manifest.shards])
    for name, view in ((QUARANTINE_FILE, refused_view), (NEIGHBOURS_TABLE, "neighbours")):
        if name in manifest.files and not manifest.is_intact(folder, name):
            note(f"left out: {view}, because {folder / name} is not what was written. See `dptr verify {folder}`")
        elif (folder / name).is_file():
            _add_view(connection, view, [folder / name])


def _add_view(connection: duckdb.DuckDBPyConnection, name: str, files: list[Path]) -> None:
    if not files:
        return
    try:
        connection.register(name, ds.dataset([str(path.absolute()) for path in files], format="parquet"))
    except (pa.ArrowException, OSError) as error:
        note(f"left out: {name}, because {files[0]} cannot be read ({str(error).splitlines()[0]})")


def _read_runs(connection: duckdb.DuckDBPyConnection, folders: Iterable[Path]) -> None:
    """Copy what runs say of themselves into tables; a broken run is named, and the others are shown."""
    described = [folder / RUN_FILE for folder in folders if _is_described(folder / RUN_FILE)]
    logs = [folder / METRICS_FILE for folder in folders if _has_metrics(folder / METRICS_FILE)]
    # A line that cannot be read comes back as a row of nulls.
    lines = "format = 'newline_delimited', ignore_errors = true"
    for name, files, options, chosen in (
        ("runs", described, "format = 'auto'", ""),
        ("metrics", logs, lines, "where step is not null"),
    ):
        if files:
            listed = ", ".join(_quoted(str(path)) for path in files)
            connection.execute(
                f"create table {name} as select parse_filename(parse_path(filename)[-2]) as run, * exclude filename "
                f"from read_json([{listed}], {options}, filename = true, union_by_name = true, sample_size = -1) "
                f"{chosen}"
            )


def _is_described(path: Path) -> bool:
    try:
        if isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
            return True
        problem = "it is no JSON object"
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error)
    note(f"left out of runs: {path} cannot be read ({problem})")
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


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
