"""DuckDB over everything in a workspace: stores, refusals, neighbours, runs, their metrics and what they read.

DuckDB itself may touch no file. A statement that writes can hide in one that reads (``with x as (copy …) select``), and
access to a folder is for reading and writing alike. So catalogues come in as Arrow datasets, which only read; the logs
of runs are read beforehand, and then DuckDB's access to files is closed for good.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from dptr.cache.errors import UserError
from dptr.cache.progress import note
from dptr.cache.sql.macros import add_macros
from dptr.cache.sql.pieces import add_pieces
from dptr.cache.sql.stored_tables import json_query, json_tables, parquet_tables, quoted, run_of_predictions
from dptr.cache.workspace import Workspace


def connect(workspace: Workspace, prompts: Path | None = None, orp: Path | None = None) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB with one view per table that exists; it can neither write nor read anything else.

    Views: ``prompts``, ``crops``, ``word_crops``, ``neighbours``, ``refused_text``, ``refused_photos``,
    ``refused_crops``, ``refused_words``, ``runs``, ``metrics``, ``predictions`` and ``pieces``;
    macros: see :mod:`dptr.cache.sql.macros`. What is damaged is named and left out.

    Args:
        workspace: where stores and runs are.
        prompts: another prompt store than the workspace's.
        orp: another ORP bank than the workspace's.

    Raises:
        UserError: the workspace holds nothing yet.
    """
    workspace = workspace.with_stores(prompts, orp) if prompts or orp else workspace
    connection = duckdb.connect()
    for name, files in json_tables(workspace).items():
        try:
            connection.execute(f"create table {name} as {json_query(name, files)}")
        except duckdb.Error as error:
            note(f"left out: {name}, because what {files[0]} says is no table ({str(error).splitlines()[0]})")
    _close(connection)
    views = {name: _add_view(connection, name, files) for name, files in parquet_tables(workspace).items()}
    there = tables(connection)
    if not there:
        raise UserError(
            f"nothing to query in {workspace.root}", "Run `dptr embed-text FILE` first, or give --workspace"
        )
    add_macros(connection, there, views.get("prompts"))
    add_pieces(connection)
    return connection


def connect_to(name: str, rows: ds.Dataset) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB as :func:`connect` does, with one view alone, and the macros that ask no other."""
    connection = duckdb.connect()
    _close(connection)
    connection.register(name, rows)
    add_macros(connection, [name])
    return connection


def tables(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the names of all views."""
    return [str(row[0]) for row in connection.execute("show tables").fetchall()]


def _close(connection: duckdb.DuckDBPyConnection) -> None:
    """Shut DuckDB off from files, extensions, the network and Python's variables, so that no query can open it again.

    It may still spill what does not fit into memory, into a folder of its own that goes with the connection.
    """
    spilled = os.path.join(tempfile.gettempdir(), f"dptr-sql-{os.getpid()}")
    connection.execute(f"set temp_directory = {quoted(spilled)}")
    connection.execute("set python_enable_replacements = false")
    connection.execute("set autoload_known_extensions = false")
    connection.execute("set autoinstall_known_extensions = false")
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")


def _add_view(connection: duckdb.DuckDBPyConnection, name: str, files: list[Path]) -> ds.Dataset | None:
    try:
        rows = _predictions(files) if name == "predictions" else _dataset(files)
    except (pa.ArrowException, OSError) as error:
        note(f"left out: {name}, because {files[0]} cannot be read ({str(error).splitlines()[0]})")
        return None
    connection.register(name, rows)
    return rows


def _dataset(files: list[Path]) -> ds.Dataset:
    return ds.dataset([str(path.absolute()) for path in files], format="parquet")


def _predictions(files: list[Path]) -> ds.Dataset:
    """Return the files as one table with a column ``run``, which is the folder's name and stands in no file."""
    whole = _dataset(files)
    named = {str(path.absolute()): run_of_predictions(path) for path in files}
    fragments = [
        whole.format.make_fragment(part.path, whole.filesystem, ds.field("run") == named[part.path])
        for part in whole.get_fragments()
    ]
    schema = pa.schema([pa.field("run", pa.string()), *whole.schema])
    return ds.FileSystemDataset(fragments, schema, whole.format, whole.filesystem)
