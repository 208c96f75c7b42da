"""What is like what: ``similarity(a, b)``, ``nearest('street', 10)`` and ``nearest_crops('street', 10)``.

``a`` and ``b`` are vectors, such as two rows' ``pooled``; the others are tables, for ``from``.
And the view ``subword_tokens``: in how many prompts each subword token stands, and how well words with it are read.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import duckdb
import pyarrow.dataset as ds
from duckdb.func import SPECIAL

from dptr.cache.file_names import VALIDATION_WORDS

#: A label's vector as DuckDB finds it: it decodes the vectors of all labels for it.
_FOUND_BY_DUCKDB = "(select any_value(pooled) from prompts where label = word)"
_FOUND_HERE = "vector_of(word)"
_GIVEN = f"""given as (
    select coalesce(
        {_FOUND_BY_DUCKDB}, error('no prompt has the label ' || word || '; dptr embed-text adds labels')
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

# Case variants of a label share their embeddings and tokens, so each prompt counts once.
_MET = """
with tokens as (
    select embeddings_of, lower(label) as label, unnest(token_ids) as token_id, unnest(token_letters) as letters,
        generate_subscripts(token_ids, 1) as place
    from prompts where embeddings_of = id
), placed as (
    select *, sum(letters) over (partition by embeddings_of order by place) - letters as start from tokens
), met as (
    select embeddings_of, label, token_id, substr(label, start::bigint + 1, letters) as token
    from placed where letters > 0
), counted as (
    select token_id, any_value(token) as token, count(distinct embeddings_of) as rows from met group by token_id
)"""
_WITHOUT_RUNS = f"""create view subword_tokens as {_MET}
select token, token_id, rows, null::varchar as run, 0::bigint as words, null::double as accuracy from counted"""
_WITH_RUNS = f"""create view subword_tokens as {_MET}, judged as (
    select token_id, run, count(*) as words, avg((lower(prediction) = held.label)::int) as accuracy
    from (select distinct token_id, label from met) as held
    join predictions on data = '{VALIDATION_WORDS}' and lower(ground_truth) = held.label
    group by token_id, run
)
select token, token_id, rows, run, coalesce(words, 0) as words, accuracy
from counted left join judged using (token_id)"""


def add_macros(
    connection: duckdb.DuckDBPyConnection, views: Collection[str], prompts: ds.Dataset | None = None
) -> None:
    """Make the macros whose views are there.

    Args:
        views: their names. prompts: the files behind the view ``prompts`` where this process reads them for DuckDB; a
            word's vector is then found without all others.
    """
    connection.execute(_similarity(connection))
    found = _FOUND_BY_DUCKDB
    if prompts is not None and {"id", "label", "pooled"} <= set(prompts.schema.names):
        _add_vector_of(connection, prompts)
        found = _FOUND_HERE
    for needed, definition in _TABLES.values():
        if needed <= set(views):
            connection.execute(definition.replace(_FOUND_BY_DUCKDB, found))


def _add_vector_of(connection: duckdb.DuckDBPyConnection, prompts: ds.Dataset) -> None:
    """Make ``vector_of(label)``: the labels alone tell the row, and its number which piece of which file to decode."""

    def vector_of(label: str) -> Any:
        ids = prompts.scanner(["id"], ds.field("label") == label).head(1)["id"]
        if not len(ids):
            return None
        return prompts.to_table(["pooled"], ds.field("id") == ids[0])["pooled"][0].as_py()

    kinds = "select data_type from information_schema.columns where table_name = 'prompts' and column_name = 'pooled'"
    ((kind,),) = connection.execute(kinds).fetchall()
    text, vector = duckdb.sqltype("VARCHAR"), duckdb.sqltype(str(kind))
    connection.create_function("vector_of", vector_of, [text], vector, null_handling=SPECIAL)


def _similarity(connection: duckdb.DuckDBPyConnection) -> str:
    widths = "select distinct data_type from information_schema.columns where column_name = 'pooled'"
    types = [str(row[0]) for row in connection.execute(widths).fetchall()]
    # Arrays of one known width are compared some ten times as fast as lists of any.
    # Parquet files that DuckDB reads by itself, as in a file of views, give lists.
    if len(types) == 1 and re.fullmatch(r"FLOAT\[\d+\]", types[0]):
        return f"create macro similarity(a, b) as array_cosine_similarity(a::{types[0]}, b::{types[0]})"
    return "create macro similarity(a, b) as list_cosine_similarity(a::float[], b::float[])"


def add_subword_tokens(connection: duckdb.DuckDBPyConnection) -> None:
    """Add the view ``subword_tokens``, where there are prompts with the letters that each token stands for.

    It has a row for each token and run that read validation words with it, case-insensitive: ``token``, ``token_id``,
    ``rows`` (prompts that hold it), ``run``, ``words`` (validation words that hold it) and ``accuracy``; for a token
    without such a run one row, with ``run`` and ``accuracy`` null.
    """
    # Stores of the first versions lack them; other programs' files may have other columns.
    if {"token_letters", "embeddings_of", "token_ids"} <= _columns(connection, "prompts"):
        with_runs = {"data", "ground_truth", "prediction", "run"} <= _columns(connection, "predictions")
        connection.execute(_WITH_RUNS if with_runs else _WITHOUT_RUNS)


def _columns(connection: duckdb.DuckDBPyConnection, view: str) -> set[str]:
    found = connection.execute("select column_name from information_schema.columns where table_name = ?", [view])
    return {name for (name,) in found.fetchall()}
