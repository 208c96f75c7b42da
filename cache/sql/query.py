"""One question to DuckDB; the answer comes in blocks, so that it need not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa

from dptr.cache.errors import UserError
from dptr.cache.interrupts import interruptible
from dptr.cache.sql.views import tables

_ROWS_A_BLOCK = 1000
#: What only reads; ``pivot`` is several statements in one.
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
        UserError: DuckDB refuses it, or it is none, several, or a statement that changes something.
    """
    # Outside UTF-8 locales Python hands over bytes that it could not decode as half surrogate pairs.
    query = query.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    try:
        _require_question(connection, query)
        cursor = interruptible(lambda: connection.execute(query), connection.interrupt)
    except duckdb.InterruptException as error:
        raise KeyboardInterrupt from error
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise _refusal(connection, error) from error
    return Answer([str(column[0]) for column in cursor.description or []], _blocks(connection, cursor))


def _blocks(
    connection: duckdb.DuckDBPyConnection, cursor: duckdb.DuckDBPyConnection
) -> Iterator[list[tuple[Any, ...]]]:
    try:
        while block := interruptible(lambda: cursor.fetchmany(_ROWS_A_BLOCK), connection.interrupt):
            yield block
    except duckdb.InterruptException as error:
        raise KeyboardInterrupt from error
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise _refusal(connection, error) from error


def _require_question(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    statements = connection.extract_statements(query)
    if not statements:
        raise UserError("there is no query", 'Give one, such as "select count(*) from prompts"')
    if len(statements) > 1:
        raise UserError(f"{len(statements)} statements at once", "Ask one after another")
    if statements[0].type not in _QUESTIONS:
        kind = str(statements[0].type).rpartition(".")[2].lower()
        raise UserError(f"only questions are answered here, not a statement of kind {kind}", "Use select")


def _refusal(connection: duckdb.DuckDBPyConnection, error: Exception) -> UserError:
    problem = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(f"DuckDB: {problem}", f"Tables here: {', '.join(tables(connection))}")
