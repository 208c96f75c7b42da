"""DuckDB views over everything in a workspace, read-only: stores, quarantines, neighbours, runs and their metrics."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import duckdb

from dptr.cache.errors import UserError
from dptr.cache.stores.manifest import FILE_NAME, Manifest, StoreKind
from dptr.cache.workspace import Workspace

_WIDEST_CELL = 60


def connect(workspace: Workspace) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB with one view per table that exists.

    Views: ``prompts``, ``crops``, ``neighbours``, ``refused_text``, ``refused_photos``, ``metrics`` and ``runs``.

    Raises:
        UserError: the workspace holds nothing yet.
    """
    connection = duckdb.connect()
    views = {
        **_store_views(workspace.prompts, "prompts", "prompts", "refused_text"),
        **_store_views(workspace.orp, "orp", "crops", "refused_photos"),
        **_run_views(workspace),
    }
    if not views:
        raise UserError(
            f"nothing to query in {workspace.root}", "Run `dptr embed-text FILE` first, or give --workspace"
        )
    for name, source in views.items():
        connection.execute(f"create view {name} as {source}")
    # From here on a query can read what the views read and nothing else can be written.
    connection.execute("set lock_configuration = true")
    return connection


def _store_views(folder: Path, kind: StoreKind, rows_view: str, refused_view: str) -> dict[str, str]:
    if not (folder / FILE_NAME).is_file():
        return {}
    views: dict[str, str] = {}
    manifest = Manifest.load(folder, kind)
    if manifest.shards:
        files = ", ".join(_quoted(folder / f"{shard.name}.parquet") for shard in manifest.shards)
        views[rows_view] = f"select * from read_parquet([{files}])"
    for name, view in (("quarantine.parquet", refused_view), ("neighbours.parquet", "neighbours")):
        if (folder / name).is_file():
            views[view] = f"select * from read_parquet({_quoted(folder / name)})"
    return views


def _run_views(workspace: Workspace) -> dict[str, str]:
    views: dict[str, str] = {}
    folders = workspace.run_folders()
    name_of_run = "parse_filename(parse_path(filename)[-2]) as run"
    if folders:
        files = ", ".join(_quoted(folder / "run.json") for folder in folders)
        views["runs"] = (
            f"select {name_of_run}, * exclude filename from read_json([{files}], filename = true, union_by_name = true)"
        )
    logs = [folder / "metrics.jsonl" for folder in folders if (folder / "metrics.jsonl").is_file()]
    if logs:
        files = ", ".join(_quoted(path) for path in logs)
        views["metrics"] = (
            f"select {name_of_run}, * exclude filename "
            f"from read_json([{files}], format = 'newline_delimited', filename = true, union_by_name = true)"
        )
    return views


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def ask(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Run one query.

    Returns:
        column names and rows.

    Raises:
        UserError: DuckDB refuses the query.
    """
    try:
        relation = connection.execute(query)
        return [column[0] for column in relation.description or []], relation.fetchall()
    except duckdb.Error as error:
        tables = ", ".join(row[0] for row in connection.execute("show tables").fetchall())
        raise UserError(f"DuckDB: {str(error).splitlines()[0]}", f"Tables here: {tables}") from error


def table(columns: list[str], rows: list[tuple[Any, ...]]) -> str:
    """Lay a result out as text; long values (vectors, prompts) are cut."""
    cells = [columns, *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def prompt(connection: duckdb.DuckDBPyConnection) -> None:
    """Answer queries typed on standard input until it ends; a bad query does not end it."""
    tables = ", ".join(row[0] for row in connection.execute("show tables").fetchall())
    print(f"tables: {tables}; end with Ctrl-D", file=sys.stderr)
    while True:
        try:
            query = input("dptr> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if query:
            try:
                print(table(*ask(connection, query)))
            except UserError as error:
                print(error, file=sys.stderr)


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _WIDEST_CELL else text[: _WIDEST_CELL - 1] + "…"
