"""Prompts and their states to one shard of the prompt store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from dptr.cache.choices import StatesDtype
from dptr.cache.stores.manifest import Shard
from dptr.cache.stores.prompts import CATALOGUE_SCHEMA
from dptr.cache.stores.shards import States, write_shard
from dptr.pipeline.text.prompts import Prompt


def write_prompt_shard(
    folder: Path, number: int, first_id: int, prompts: list[Prompt], states: States, dtype: StatesDtype
) -> Shard:
    """Write shard ``number`` with a row for every label of ``prompts``; the caller commits it.

    Labels of one prompt repeat its states, so that a row can be read without looking elsewhere; ``states_of`` is the
    id of the first of them.
    """
    repeats = np.array([len(prompt.labels) for prompt in prompts])
    rows = [(label, prompt) for prompt in prompts for label in prompt.labels]
    of_prompt = np.repeat(np.arange(len(prompts)), repeats)
    first_rows = np.cumsum(repeats) - repeats
    columns = {
        "id": pa.array(np.arange(first_id, first_id + len(rows))),
        "label": [label for label, _ in rows],
        "prompt": [prompt.text for _, prompt in rows],
        "label_length": pa.array([len(label) for label, _ in rows], pa.int16()),
        "n_tokens": pa.array([len(prompt.token_ids) for _, prompt in rows], pa.int16()),
        "token_ids": pa.array([prompt.token_ids for _, prompt in rows], pa.list_(pa.int32())),
        "states_of": pa.array(first_id + first_rows[of_prompt]),
        "count": pa.array([prompt.count for _, prompt in rows], pa.int64()),
        "source": [prompt.source for _, prompt in rows],
    }
    if len(rows) > len(prompts):
        states = _repeat(states, of_prompt)
    return write_shard(folder, number, pa.table(columns, schema=CATALOGUE_SCHEMA), states, dtype, {})


def _repeat(states: States, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> States:
    """Return the states of ``rows``, which may name one more than once."""
    starts = np.cumsum(states.lengths) - states.lengths
    lengths = states.lengths[rows]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return States(states.tokens[np.repeat(starts[rows], lengths) + within], lengths, states.pooled[rows])
