"""Prompts and their states to one shard of the prompt store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dptr.cache.choices import StatesDtype
from dptr.cache.errors import UserError
from dptr.cache.stores.manifest import Shard
from dptr.cache.stores.prompts import CATALOGUE_SCHEMA, TEMPLATE_COLUMN
from dptr.cache.stores.shards import States, write_shard
from dptr.pipeline.text.prompts import Prompt


def write_prompt_shard(
    folder: Path,
    number: int,
    first_id: int,
    prompts: list[Prompt],
    states: States,
    dtype: StatesDtype,
    templates: int = 1,
) -> Shard:
    """Write shard ``number`` with a row for every label of ``prompts``; the caller commits it.

    Labels of one prompt repeat its states, so that a row can be read by itself; ``states_of`` is the
    id of the first of them. With several ``templates``, each row says which of them it has.

    Raises:
        UserError: a prompt's states are too large for half precision.
    """
    _require_fitting(prompts, states, dtype)
    repeats = np.array([len(prompt.labels) for prompt in prompts])
    rows = [(label, prompt) for prompt in prompts for label in prompt.labels]
    of_prompt = np.repeat(np.arange(len(prompts)), repeats)
    first_rows = np.cumsum(repeats) - repeats
    columns = {
        "id": pa.array(np.arange(first_id, first_id + len(rows))),
        "label": [label for label, _ in rows],
        "prompt": [prompt.text for _, prompt in rows],
        "label_length": pa.array([length for prompt in prompts for length in prompt.lengths], pa.int16()),
        "n_tokens": pa.array([len(prompt.token_ids) for _, prompt in rows], pa.int16()),
        "token_ids": pa.array([prompt.token_ids for _, prompt in rows], pa.list_(pa.int32())),
        "token_letters": pa.array([prompt.token_letters for _, prompt in rows], pa.list_(pa.int16())),
        "states_of": pa.array(first_id + first_rows[of_prompt]),
        "count": pa.array([prompt.count for _, prompt in rows], pa.int64()),
        "source": [prompt.source for _, prompt in rows],
    }
    if len(rows) > len(prompts):
        states = states.at(of_prompt)
    schema = CATALOGUE_SCHEMA
    if templates > 1:
        schema = schema.append(TEMPLATE_COLUMN)
        columns[TEMPLATE_COLUMN.name] = pa.array([prompt.template for _, prompt in rows], TEMPLATE_COLUMN.type)
    return write_shard(folder, number, pa.table(columns, schema=schema), states, dtype, {})


def _require_fitting(prompts: list[Prompt], states: States, dtype: StatesDtype) -> None:
    """Check that half precision holds what it has to: token states where they are stored so, pooled vectors always."""
    if dtype == "float16":
        token = np.abs(states.tokens).max(axis=1, initial=0.0).argmax()
        _require_half(states.tokens[token], prompts[_row_of(token, states)], "Use --dtype float32")
    row = int(np.abs(states.pooled).max(axis=1, initial=0.0).argmax())
    _require_half(states.pooled[row], prompts[row], "Pooled vectors are kept in half precision: use another CLIP")


def _row_of(token: np.intp, states: States) -> int:
    return int(np.searchsorted(np.cumsum(states.lengths), token, side="right"))


def _require_half(vector: NDArray[np.float32], prompt: Prompt, advice: str) -> None:
    largest = float(np.abs(vector).max())
    if not largest <= float(np.finfo(np.float16).max):
        raise UserError(
            f"a state of the prompt {prompt.text!r} is {largest:.3g} large, which float16 cannot hold", advice
        )


def prompts_in(catalogue: Path) -> list[Prompt]:
    """Return the prompts of a shard's catalogue, as they were embedded."""
    prompts: dict[int, Prompt] = {}
    for row in pq.read_table(catalogue).drop_columns(["pooled"]).to_pylist():
        made: dict[str, Any] = {name: row[name] for name in ("token_ids", "token_letters", "count", "source")}
        made |= {"text": row["prompt"], "template": row.get(TEMPLATE_COLUMN.name, 0)}
        known = prompts.setdefault(row["states_of"], Prompt(labels=[], lengths=[], **made))
        known.labels.append(row["label"])
        known.lengths.append(row["label_length"])
    return list(prompts.values())
