"""Prompt stores for ablations, without a CLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dptr.cache.file_names import PREFIX_FILE
from dptr.cache.stores.manifest import FileRecord, Manifest
from dptr.cache.stores.shards import States, write_shard, write_states

DIM = 16


@pytest.fixture(scope="session")
def write_prompts() -> Callable[[Path, Sequence[str]], Path]:
    """A new folder, words of three letters -> the folder with a prompt store of them, a random vector each."""

    def write(folder: Path, words: Sequence[str]) -> Path:
        folder.mkdir()
        drawn = np.random.default_rng(0).normal(size=(len(words), DIM)).astype(np.float32)
        catalogue = pa.table(
            {
                "label": words,
                "label_length": pa.array([3] * len(words), pa.int16()),
                "count": pa.array([1] * len(words)),
                "source": ["x"] * len(words),
            }
        )
        charset = "0123456789abcdefghijklmnopqrstuvwxyz"
        manifest = Manifest("prompts", {"encoder": "t", "weights": "w", "charset": charset})
        states = States(drawn, np.ones(len(words), np.int64), drawn)
        manifest.shards.append(write_shard(folder, 0, catalogue, states, "float32", {}))
        write_states(folder / PREFIX_FILE, States(drawn[:1], np.array([1]), drawn[:1]), "float32")
        manifest.files[PREFIX_FILE] = FileRecord.of(folder / PREFIX_FILE)
        manifest.save(folder)
        return folder

    return write
