"""One DuckDB query; its result is printed or written in blocks, so it need not fit into memory.

A result is a table, CSV, JSON or a Parquet file. Queries cannot name files, and DuckDB writes none: this module writes
the result. It also has the interactive prompt.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from dptr.cache import plain_json
from dptr.cache.choices import AnswerForm
from dptr.cache.errors import UserError
from dptr.cache.interrupts import interruptible
from dptr.cache.sql.views import tables
from dptr.cache.stores.files import atomic_path
from dptr.cache.table import table_lines
from dptr.cache.visible import visible

_Result = TypeVar("_Result")

_ROWS_A_BLOCK = 1000
_ROWS_A_BATCH = 16_384
#: Kinds of statement that only read; ``pivot`` is several statements in one.
_QUESTIONS = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI)


@dataclass(frozen=True)
class Answer:
    """The result of a query.

    Attributes:
        columns: their names.
        blocks: rows in blocks of at most 1,000; to be read once, before the connection's next query.
    """

    columns: list[str]
    blocks: Iterator[list[tuple[Any, ...]]]

    def rows(self) -> list[tuple[Any, ...]]:
        """Return all rows that are left."""
        return [row for block in self.blocks for row in block]


def ask(connection: duckdb.DuckDBPyConnection, query: str) -> Answer:
    """Run one query.

    Raises:
        UserError: DuckDB rejects it, or it is empty, several statements, or a statement that writes.
    """
    cursor = _run(connection, query, connection.execute)

    def blocks() -> Iterator[list[tuple[Any, ...]]]:
        with _explained(connection):
            while block := interruptible(lambda: cursor.fetchmany(_ROWS_A_BLOCK), connection.interrupt):
                yield block

    return Answer([str(column[0]) for column in cursor.description or []], blocks())


def require_distinct(columns: Sequence[str]) -> None:
    """Raise :class:`UserError` if two columns have one name, which JSON objects and Parquet files do not allow."""
    twice = [name for name in dict.fromkeys(columns) if columns.count(name) > 1]
    if twice:
        raise UserError(f"two columns are called {twice[0]}", "Give each a distinct name: select a.id as first, …")


def prompt(connection: duckdb.DuckDBPyConnection) -> None:
    """Run queries from standard input until its end; an error does not stop it."""
    print(f"tables: {', '.join(tables(connection))}; end with Ctrl-D", file=sys.stderr)
    interactive = sys.stdin.isatty()
    if interactive:
        with suppress(ImportError):  # Python on Windows has no readline
            import readline  # noqa: F401  # lets input() edit and recall lines
    while True:
        try:
            query = input("dptr> " if interactive else "").strip()
        except EOFError:
            return
        try:
            if query:
                answer = ask(connection, query)
                for line in table_lines(answer.columns, answer.blocks):
                    print(line)
        except UserError as error:
            print(visible(str(error)), file=sys.stderr)


def _run(connection: duckdb.DuckDBPyConnection, query: str, how: Callable[[str], _Result]) -> _Result:
    # Outside UTF-8 locales Python represents undecodable bytes as surrogates.
    query = query.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    with _explained(connection):
        _require_question(connection, query)
        _end_transaction(connection)
        # A select can hold an insert, update or delete: ``with x as (delete from runs returning *) from x``.
        connection.execute("begin transaction read only")
        return interruptible(lambda: how(query), connection.interrupt)


def _end_transaction(connection: duckdb.DuckDBPyConnection) -> None:
    with suppress(duckdb.TransactionException):  # none is active
        connection.execute("rollback")


@contextmanager
def _explained(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    try:
        yield
    except duckdb.InterruptException as error:
        raise KeyboardInterrupt from error
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        _end_transaction(connection)
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"DuckDB: {problem}", f"Tables here: {', '.join(tables(connection))}") from error


def _require_question(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    statements = connection.extract_statements(query)
    if not statements:
        raise UserError("the query is empty", 'Give one, such as "select count(*) from prompts"')
    if len(statements) > 1:
        raise UserError(f"{len(statements)} statements at once", "Run one at a time")
    if statements[0].type not in _QUESTIONS:
        kind = str(statements[0].type).rpartition(".")[2].lower()
        raise UserError(f"only queries are allowed, not a {kind} statement", "Use select")


_FORMS: dict[str, AnswerForm] = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".txt": "table"}


def form_of(path: Path) -> AnswerForm:
    """Return the format of a file's suffix, or raise :class:`UserError`."""
    if path.suffix.lower() not in _FORMS:
        raise UserError(f"{path} has no known suffix", f"Use one of {', '.join(_FORMS)}, or give --format")
    return _FORMS[path.suffix.lower()]


def write_answer(connection: duckdb.DuckDBPyConnection, query: str, form: AnswerForm, out: Path) -> int:
    """Write the result of ``query`` to ``out``, atomically and block by block; return its number of rows."""
    return _write_parquet(connection, query, out) if form == "parquet" else _write_text(connection, query, form, out)


def text_pieces(answer: Answer, form: AnswerForm, fit: bool = True) -> Iterator[str]:
    """Yield a result as text; ``fit`` limits a table to the terminal's width."""
    match form:
        case "table":
            return (line + "\n" for line in table_lines(answer.columns, answer.blocks, fit=fit))
        case "csv":
            return _csv(answer)
        case "json":
            require_distinct(answer.columns)
            return _json(answer)
        case "parquet":
            raise UserError("Parquet is for files", "Name one: -o FILE.parquet")


def json_pieces(answer: Answer, figures: dict[str, Any]) -> Iterator[str]:
    """Yield the parts of one JSON object: ``figures``, columns, all rows as ``result``, and their number."""
    started, rows = time.monotonic(), 0
    yield plain_json.dumps({**figures, "columns": answer.columns})[:-1] + ', "result": ['
    for block in answer.blocks:
        texts = (plain_json.dumps(row) for row in block)
        yield (", " if rows else "") + ", ".join(texts)
        rows += len(block)
    seconds = figures.get("seconds", 0.0) + time.monotonic() - started
    yield "], " + plain_json.dumps({"rows": rows, "seconds": seconds})[1:]


def _csv(answer: Answer) -> Iterator[str]:
    header: list[tuple[Any, ...]] = [tuple(answer.columns)]
    for block in chain([header], answer.blocks):
        stream = io.StringIO()
        # Lists and structures as JSON, which programs can parse; nulls as empty text.
        rows = ([plain_json.dumps(v) if isinstance(v, list | tuple | dict) else v for v in row] for row in block)
        csv.writer(stream, lineterminator="\n").writerows(rows)
        yield stream.getvalue()


def _json(answer: Answer) -> Iterator[str]:
    """One array, an object a line."""
    yield "["
    before = "\n"
    for block in answer.blocks:
        yield before + ",\n".join(plain_json.dumps(dict(zip(answer.columns, row, strict=True))) for row in block)
        before = ",\n"
    yield "\n]\n"


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
    # A relation streams its batches; an executed result would first be copied as a whole.
    relation = _run(connection, query, connection.sql)
    require_distinct(relation.columns)
    with _explained(connection):
        reader = interruptible(lambda: relation.to_arrow_reader(_ROWS_A_BATCH), connection.interrupt)

    def batches() -> Iterator[pa.RecordBatch]:
        with _explained(connection):
            while (batch := interruptible(lambda: next(reader, None), connection.interrupt)) is not None:
                yield batch

    rows = 0
    with atomic_path(out) as temporary, pq.ParquetWriter(temporary, reader.schema, compression="zstd") as writer:
        for batch in batches():
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows
