"""An answer as text that comes in pieces, so that it need not fit into memory: a table, CSV, JSON."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterator, Sequence
from typing import Any

from dptr.cache import plain_json
from dptr.cache.choices import AnswerForm
from dptr.cache.errors import UserError
from dptr.cache.sql.query import Answer, require_distinct
from dptr.cache.table import table_lines


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
