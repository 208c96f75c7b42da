"""Queries typed one after another."""

from __future__ import annotations

import sys

import duckdb

from dptr.cache.errors import UserError
from dptr.cache.sql.query import ask
from dptr.cache.sql.views import tables
from dptr.cache.table import table_lines


def prompt(connection: duckdb.DuckDBPyConnection) -> None:
    """Answer queries typed on standard input until it ends; a bad query does not end it."""
    print(f"tables: {', '.join(tables(connection))}; end with Ctrl-D", file=sys.stderr)
    while True:
        try:
            query = input("dptr> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if query:
            try:
                answer = ask(connection, query)
                for line in table_lines(answer.columns, answer.blocks):
                    print(line)
            except UserError as error:
                print(error, file=sys.stderr)
