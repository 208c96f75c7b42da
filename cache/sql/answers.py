"""An answer as a table, CSV, JSON or a Parquet file, block by block, so that it need not fit into memory.

No query can name a file, and DuckDB writes none: this module writes what DuckDB returns.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from dptr.cache import plain_json
from dptr.cache.choices import AnswerForm
from dptr.cache.errors import UserError
from dptr.cache.sql.query import Answer, ask, ask_typed, require_distinct
from dptr.cache.stores.files import atomic_path
from dptr.cache.table import table_lines

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
        UserError: DuckDB rejects the query, or two columns of an object or a Parquet file have one name.
    """
    return _write_parquet(connection, query, out) if form == "parquet" else _write_text(connection, query, form, out)


def text_pieces(answer: Answer, form: AnswerForm, fit: bool = True) -> Iterator[str]:
    """Yield an answer as text; ``fit`` lets a table be as wide as the terminal.

    Raises:
        UserError: an object of JSON would have two columns of one name, or the form is no text.
    """
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
    """Yield the pieces of one JSON object: ``figures``, the columns, all rows as ``result``, and how many they are."""
    started, rows = time.monotonic(), 0
    yield plain_json.dumps({**figures, "columns": answer.columns})[:-1] + ', "result": ['
    for block in answer.blocks:
        texts = (plain_json.dumps(row) for row in block)
        yield (", " if rows else "") + ", ".join(texts)
        rows += len(block)
    seconds = figures.get("seconds", 0.0) + time.monotonic() - started
    yield "], " + plain_json.dumps({"rows": rows, "seconds": seconds})[1:]


def _csv(answer: Answer) -> Iterator[str]:
    yield _csv_lines([answer.columns])
    for block in answer.blocks:
        yield _csv_lines([[_csv_cell(value) for value in row] for row in block])


def _csv_lines(rows: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def _csv_cell(value: Any) -> Any:
    # Lists and structures as JSON, which programs read back; what is missing as nothing.
    return plain_json.dumps(value) if isinstance(value, list | tuple | dict) else value


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
    schema, batches = ask_typed(connection, query)
    rows = 0
    with atomic_path(out) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows
