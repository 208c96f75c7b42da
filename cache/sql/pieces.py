"""The tokenizer's pieces: in how many prompts each stands, and how well words that hold it are read.

A decoder has to learn how each piece is spelt, so how often each occurs matters more than how many words there are.
What a piece spells is taken from the labels: a catalogue has how many letters of its label each token stands for.
"""

from __future__ import annotations

import duckdb

from dptr.cache.file_names import VALIDATION_WORDS

# Case variants of a label share their states and tokens, so each prompt counts once.
_MET = """
with tokens as (
    select states_of, lower(label) as label, unnest(token_ids) as token_id, unnest(token_letters) as letters,
        generate_subscripts(token_ids, 1) as place
    from prompts where states_of = id
), placed as (
    select *, sum(letters) over (partition by states_of order by place) - letters as start from tokens
), met as (
    select states_of, label, token_id, substr(label, start::bigint + 1, letters) as piece
    from placed where letters > 0
), counted as (
    select token_id, any_value(piece) as piece, count(distinct states_of) as rows from met group by token_id
)"""
_WITHOUT_RUNS = f"""create view pieces as {_MET}
select piece, token_id, rows, null::varchar as run, 0::bigint as words, null::double as accuracy from counted"""
_WITH_RUNS = f"""create view pieces as {_MET}, judged as (
    select token_id, run, count(*) as words, avg((lower(reading) = held.label)::int) as accuracy
    from (select distinct token_id, label from met) as held
    join predictions on data = '{VALIDATION_WORDS}' and lower(truth) = held.label
    group by token_id, run
)
select piece, token_id, rows, run, coalesce(words, 0) as words, accuracy
from counted left join judged using (token_id)"""


def add_pieces(connection: duckdb.DuckDBPyConnection) -> None:
    """Add the view ``pieces``, where there are prompts with the letters that each token stands for.

    It has a row for each piece and run that read validation words with it, case aside: ``piece``, ``token_id``,
    ``rows`` (prompts that hold it), ``run``, ``words`` (validation words that hold it) and ``accuracy``; for a piece
    without such a run one row, with ``run`` and ``accuracy`` null.
    """
    # Stores of the first versions lack them; other programs' files may have other columns.
    if {"token_letters", "states_of", "token_ids"} <= _columns(connection, "prompts"):
        with_runs = {"data", "truth", "reading", "run"} <= _columns(connection, "predictions")
        connection.execute(_WITH_RUNS if with_runs else _WITHOUT_RUNS)


def _columns(connection: duckdb.DuckDBPyConnection, view: str) -> set[str]:
    found = connection.execute("select column_name from information_schema.columns where table_name = ?", [view])
    return {name for (name,) in found.fetchall()}
