"""Queries typed one after another; on a terminal with a history that is kept and completion with Tab."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from dptr.cache.errors import UserError
from dptr.cache.progress import note
from dptr.cache.sql.query import ask
from dptr.cache.sql.views import tables
from dptr.cache.table import table_lines

_LONGEST_HISTORY = 1000
_DELIMITERS = " \t\n,;()=<>+-*/'\"."


def prompt(connection: duckdb.DuckDBPyConnection) -> None:
    """Run queries typed on standard input until it ends; a bad query does not end it."""
    print(f"tables: {', '.join(tables(connection))}; end with Ctrl-D", file=sys.stderr)
    if not sys.stdin.isatty():
        _answer_lines(connection, "")
        return
    with _line_editing(words(connection)):
        _answer_lines(connection, "dptr> ")


def words(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Return what Tab completes: views, their columns, macros and the words of SQL, sorted."""
    columns = "select column_name from information_schema.columns"
    macros = "select function_name from duckdb_functions() where not internal"
    keywords = "select keyword_name from duckdb_keywords() where keyword_category = 'reserved'"
    found = connection.execute(f"{columns} union {macros} union {keywords}").fetchall()
    return sorted({*tables(connection), *(str(row[0]) for row in found)})


def history_file() -> Path:
    """Return where the history of queries is kept, below ``XDG_STATE_HOME`` or ``~/.local/state``."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "dptr" / "sql_history"


def _answer_lines(connection: duckdb.DuckDBPyConnection, shown: str) -> None:
    while True:
        try:
            query = input(shown).strip()
        except EOFError:
            return
        if query:
            try:
                answer = ask(connection, query)
                for line in table_lines(answer.columns, answer.blocks):
                    print(line)
            except UserError as error:
                print(error, file=sys.stderr)


@contextmanager
def _line_editing(known: list[str]) -> Iterator[None]:
    """Let lines be edited, recalled and completed, where this Python can."""
    try:
        import readline
    except ImportError:  # Python on Windows has none
        yield
        return

    def complete(start: str, number: int) -> str | None:
        return next(iter([word for word in known if word.startswith(start)][number:]), None)

    readline.set_completer(complete)
    readline.set_completer_delims(_DELIMITERS)
    readline.parse_and_bind("tab: complete")
    readline.set_history_length(_LONGEST_HISTORY)
    kept = history_file()
    if kept.is_file():
        readline.read_history_file(kept)
    try:
        yield
    finally:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(kept)
        except OSError as error:
            note(f"the history is not kept: {error}")
