"""The one file that ``dptr sql`` writes where it is asked to: an answer (``-o``), or a file of views (``--open``).

No query can name it, and DuckDB writes no answer: that is done here, from what DuckDB hands over. A file of views is
made on a connection of its own, which runs no query. Neither replaces anything in a store or a run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from dptr.cache.choices import AnswerForm
from dptr.cache.errors import UserError
from dptr.cache.file_names import RECIPE_FILE, RUN_FILE
from dptr.cache.progress import note
from dptr.cache.sql.answer_text import text_pieces
from dptr.cache.sql.macros import add_macros
from dptr.cache.sql.pieces import add_pieces
from dptr.cache.sql.query import Answer, ask, ask_typed
from dptr.cache.sql.stored_tables import json_query, json_tables, listed, parquet_tables
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.manifest import kind_of
from dptr.cache.workspace import Workspace

_FORMS: dict[str, AnswerForm] = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".txt": "table"}


def form_of(path: Path) -> AnswerForm:
    """Return the form that a file's ending stands for.

    Raises:
        UserError: it stands for none.
    """
    if path.suffix.lower() not in _FORMS:
        raise UserError(f"{path} does not say in which form", f"End it in {', '.join(_FORMS)}, or give --format")
    return _FORMS[path.suffix.lower()]


def write_answer(connection: duckdb.DuckDBPyConnection, query: str, form: AnswerForm, out: Path) -> int:
    """Write the answer to ``query`` into ``out``, atomically and block by block; return how many rows it has.

    Raises:
        UserError: DuckDB refuses the query, or two columns of an object or a Parquet file have one name.
    """
    return _write_parquet(connection, query, out) if form == "parquet" else _write_text(connection, query, form, out)


def write_views(workspace: Workspace, out: Path) -> list[str]:
    """Write a DuckDB file of views over the files of a workspace, with the macros; return the views' names.

    Raises:
        UserError: the file exists, or there is nothing to show.
    """
    if out.exists():
        raise UserError(f"{out} exists", "Remove it, or name another file: it may hold tables of yours")
    queries = {name: json_query(name, files) for name, files in json_tables(workspace).items()}
    for name, files in parquet_tables(workspace).items():
        queries[name] = f"select * from read_parquet({listed(files)}, union_by_name = true)"
        if name == "predictions":
            queries[name] = (
                "select parse_filename(parse_path(filename)[-3]) as run, * exclude filename "
                f"from read_parquet({listed(files)}, union_by_name = true, filename = true)"
            )
    with atomic_path(out) as temporary, duckdb.connect(str(temporary)) as connection:
        views = [name for name, query in queries.items() if _add_view(connection, name, query)]
        if not views:
            raise UserError(f"nothing to query in {workspace.root}", "Run `dptr embed-text FILE` first")
        add_macros(connection, views)
        add_pieces(connection)
        connection.close()
    return views


def require_no_store(out: Path, workspace: Workspace) -> None:
    """Check that a file to write lies in no store, run or other folder that commands fill.

    Raises:
        UserError: it does, or it is no plain file.
    """
    place = out.resolve()
    stores = (workspace.prompts, workspace.orp, workspace.word_crops)
    taken = {folder.resolve() for folder in (*stores, workspace.runs, workspace.models)}
    for folder in place.parents:
        if folder in taken or kind_of(folder) or all((folder / name).is_file() for name in (RUN_FILE, RECIPE_FILE)):
            raise UserError(f"{out} lies in {folder}, where only dptr's own files are", "Name a file elsewhere")
    if place.exists() and not place.is_file():
        raise UserError(f"{out} is there and no plain file", "Name another")


def _write_text(connection: duckdb.DuckDBPyConnection, query: str, form: AnswerForm, out: Path) -> int:
    answer, rows = ask(connection, query), 0

    def counted() -> Iterator[list[tuple[object, ...]]]:
        nonlocal rows
        for block in answer.blocks:
            rows += len(block)
            yield block

    pieces = text_pieces(Answer(answer.columns, counted()), form, fit=False)
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(pieces)
    return rows


def _write_parquet(connection: duckdb.DuckDBPyConnection, query: str, out: Path) -> int:
    schema, batches = ask_typed(connection, query)
    rows = 0
    with atomic_path(out) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _add_view(connection: duckdb.DuckDBPyConnection, name: str, query: str) -> bool:
    try:
        connection.execute(f"create view {name} as {query}")
    except duckdb.Error as error:
        note(f"left out: {name} ({str(error).splitlines()[0]})")
        return False
    return True
