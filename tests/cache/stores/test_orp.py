from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dptr.cache.choices import StatesDtype
from dptr.cache.stores import shards
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.orp import CATALOGUE_SCHEMA, OrpBank
from dptr.cache.stores.shards import States, write_shard

TOKENS, DIM = 6, 8


def values(shard: int) -> np.ndarray:
    return np.random.default_rng(shard).standard_normal((5, TOKENS, DIM)).astype(np.float32)


def make_bank(folder: Path, dtype: StatesDtype) -> OrpBank:
    manifest = Manifest("orp", {"encoder": "made up", "weights": "w", "tokens_per_crop": TOKENS})
    for number in range(3):
        rows = [
            {"id": i, "image": "", "image_sha256": "", "x": 0, "y": 0, "width": 1, "height": 1, "thumbnail": b""}
            for i in range(5)
        ]
        tokens = values(number)
        states = States(tokens.reshape(-1, DIM), np.full(5, TOKENS, np.int64), tokens[:, 0])
        table = pa.Table.from_pylist(rows, CATALOGUE_SCHEMA)
        manifest.shards.append(write_shard(folder, number, table, states, dtype, {"photos": 1}))
    manifest.save(folder)
    return OrpBank(folder)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("float32", 0.0), ("int8", 0.02)])
def test_tokens_of_any_shards_in_the_order_asked_for(tmp_path: Path, dtype: StatesDtype, tolerance: float) -> None:
    bank = make_bank(tmp_path, dtype)
    everything = np.concatenate([values(number) for number in range(3)])
    generator = np.random.default_rng(0)
    crops = generator.integers(0, len(bank), 200)
    positions = generator.integers(0, TOKENS, (200, 4))
    tokens = bank.tokens(crops, positions)
    assert tokens.dtype == (np.float16 if dtype == "float16" else np.float32)
    np.testing.assert_allclose(tokens, everything[crops[:, None], positions], atol=tolerance)


def test_mapped_pages_are_dropped_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = make_bank(tmp_path, "float16")
    releases: list[int] = []
    release = shards.StatesReader.release
    monkeypatch.setattr(shards.StatesReader, "release", lambda reader: releases.append(1) or release(reader))
    monkeypatch.setattr(shards, "_TOKENS_BETWEEN_RELEASES", 25)
    for _ in range(10):
        bank.tokens(np.arange(10), np.zeros((10, 1), np.int64))
    assert len(releases) == 3
