from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dptr.cache.choices import EmbeddingsDtype
from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import INDEX_FILE, NEIGHBOURS_ARRAY
from dptr.cache.stores import shards
from dptr.cache.stores.manifest import FileRecord, Manifest
from dptr.cache.stores.neighbours import DETAIL, Neighbours, made_from, why_outdated
from dptr.cache.stores.orp import CATALOGUE_SCHEMA, OrpBank
from dptr.cache.stores.shards import Embeddings, write_shard

TOKENS, DIM = 6, 8


def values(shard: int) -> np.ndarray:
    return np.random.default_rng(shard).standard_normal((5, TOKENS, DIM)).astype(np.float32)


def make_bank(folder: Path, dtype: EmbeddingsDtype) -> OrpBank:
    manifest = Manifest("orp", {"encoder": "made up", "weights": "w", "tokens_per_crop": TOKENS})
    for number in range(3):
        rows = [
            {"id": i, "image": "", "image_sha256": "", "x": 0, "y": 0, "width": 1, "height": 1, "thumbnail": b""}
            for i in range(5)
        ]
        tokens = values(number)
        embeddings = Embeddings(tokens.reshape(-1, DIM), np.full(5, TOKENS, np.int64), tokens[:, 0])
        table = pa.Table.from_pylist(rows, CATALOGUE_SCHEMA)
        manifest.shards.append(write_shard(folder, number, table, embeddings, dtype, {"photos": 1}))
    manifest.save(folder)
    return OrpBank(folder)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-3), ("float32", 0.0), ("int8", 0.02)])
def test_tokens_of_any_shards_in_the_order_asked_for(tmp_path: Path, dtype: EmbeddingsDtype, tolerance: float) -> None:
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
    release = shards.EmbeddingsReader.release
    monkeypatch.setattr(shards.EmbeddingsReader, "release", lambda reader: releases.append(1) or release(reader))
    monkeypatch.setattr(shards, "_TOKENS_BETWEEN_RELEASES", 25)
    for _ in range(10):
        bank.tokens(np.arange(10), np.zeros((10, 1), np.int64))
    assert len(releases) == 3


@pytest.mark.parametrize("rows", [[15], [-1], [0.5], ["a"], None, [True], [[0, 1]]])
def test_rows_and_tokens_that_a_store_does_not_have_are_rejected(tmp_path: Path, rows: Any) -> None:
    bank = make_bank(tmp_path, "float16")
    with pytest.raises(UserError, match="row"):
        bank.pooled_of(rows)
    with pytest.raises(UserError, match="row"):
        bank.tokens(rows, np.zeros((1, 1), np.int64))


@pytest.mark.parametrize("positions", [[[9999]], [[-1]], [[TOKENS]], [0], [[0], [1]], [[0.5]], [[True]], None])
def test_tokens_that_a_crop_does_not_have_are_rejected(tmp_path: Path, positions: Any) -> None:
    with pytest.raises(UserError, match="token"):
        make_bank(tmp_path, "float16").tokens(np.array([0]), positions)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_no_rows_give_nothing(tmp_path: Path, dtype: EmbeddingsDtype) -> None:
    bank = make_bank(tmp_path, dtype)
    assert bank.pooled_of([]).shape == (0, DIM)  # type: ignore[arg-type]
    assert bank.tokens([], np.zeros((0, 2), np.int64)).shape == (0, 2, DIM)  # type: ignore[arg-type]


def test_what_is_no_column_and_no_shard_is_rejected(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, "float16")
    assert bank.catalogue(["image"]).column_names == ["image"]
    with pytest.raises(UserError, match="no column 1"):
        bank.catalogue([1])  # type: ignore[list-item]
    with pytest.raises(UserError, match="no shard 3"):
        bank.pooled(3)


CROPS = np.arange(12, dtype=np.int32).reshape(4, 3)


def bank_manifest(index: str = "i") -> Manifest:
    return Manifest("orp", {"encoder": "made up", "weights": "w"}, files={INDEX_FILE: FileRecord(1, index)})


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    np.save(tmp_path / NEIGHBOURS_ARRAY, CROPS)
    manifest = Manifest("prompts", {"encoder": "made up", "weights": "w"})
    manifest.files[NEIGHBOURS_ARRAY] = FileRecord.of(tmp_path / NEIGHBOURS_ARRAY)
    manifest.details[DETAIL] = {**made_from(manifest, bank_manifest()), "k": 3}
    manifest.save(tmp_path)
    return tmp_path


def bank(index: str = "i") -> Any:
    return SimpleNamespace(manifest=bank_manifest(index), folder=Path("orp"))


def test_rows_come_back_as_they_were_written(prompts: Path) -> None:
    neighbours = Neighbours.open(prompts, bank())
    np.testing.assert_array_equal(neighbours.of(np.array([2, 0, 2])), CROPS[[2, 0, 2]])
    assert (len(neighbours), neighbours.k) == (4, 3)


def test_another_index_makes_them_outdated(prompts: Path) -> None:
    with pytest.raises(DamagedStore, match="index was i, is j"):
        Neighbours.open(prompts, bank("j"))
    manifest = Manifest.load(prompts, "prompts")
    assert why_outdated(manifest, bank_manifest(), k=3) is None
    assert why_outdated(manifest, bank_manifest(), k=4) == "k was 3, 4 are wanted"


def test_missing_ones_and_damaged_ones(prompts: Path) -> None:
    size = (prompts / NEIGHBOURS_ARRAY).stat().st_size
    (prompts / NEIGHBOURS_ARRAY).write_bytes(b"x" * size)
    with pytest.raises(DamagedStore, match="damaged"):
        Neighbours.open(prompts, bank())
    Manifest("prompts", {"encoder": "made up", "weights": "w"}).save(prompts)
    with pytest.raises(UserError, match="mine-neighbours"):
        Neighbours.open(prompts, bank())
