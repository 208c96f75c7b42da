"""What is like what: ``similarity(a, b)``, ``nearest('street', 10)`` and ``nearest_crops('street', 10)``.

``a`` and ``b`` are vectors, such as two rows' ``pooled``; the others are tables, for ``from``.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import duckdb

_GIVEN = """given as (
    select coalesce(
        (select any_value(pooled) from prompts where label = word),
        error('no prompt has the label ' || word || '; dptr embed-text adds labels')
    ) as vector
)"""
_NEAREST = f"""create macro nearest(word, k := 10) as table
with {_GIVEN}
select id, label, similarity(pooled, vector) as similarity from prompts, given
where label <> word order by similarity desc, id limit k"""
_NEAREST_CROPS = f"""create macro nearest_crops(word, k := 10) as table
with {_GIVEN}
select id, image, x, y, width, height, similarity(pooled, vector) as similarity from crops, given
order by similarity desc, id limit k"""
#: Name -> views that it reads, and how it is made.
_TABLES = {"nearest": ({"prompts"}, _NEAREST), "nearest_crops": ({"prompts", "crops"}, _NEAREST_CROPS)}


def add_macros(connection: duckdb.DuckDBPyConnection, views: Collection[str]) -> None:
    """Make the macros whose views are there."""
    connection.execute(_similarity(connection))
    for needed, definition in _TABLES.values():
        if needed <= set(views):
            connection.execute(definition)


def _similarity(connection: duckdb.DuckDBPyConnection) -> str:
    widths = "select distinct data_type from information_schema.columns where column_name = 'pooled'"
    types = [str(row[0]) for row in connection.execute(widths).fetchall()]
    # Arrays of one known width are compared some ten times as fast as lists of any.
    # Parquet files that DuckDB reads by itself, as in a file of views, give lists.
    if len(types) == 1 and re.fullmatch(r"FLOAT\[\d+\]", types[0]):
        return f"create macro similarity(a, b) as array_cosine_similarity(a::{types[0]}, b::{types[0]})"
    return "create macro similarity(a, b) as list_cosine_similarity(a::float[], b::float[])"
