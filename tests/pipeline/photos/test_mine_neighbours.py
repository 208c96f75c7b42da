from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import INDEX_FILE, NEIGHBOURS_ARRAY, NEIGHBOURS_TABLE, PREFIX_FILE
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.neighbours import Neighbours
from dptr.cache.stores.orp import CATALOGUE_SCHEMA, OrpBank
from dptr.cache.stores.prompts import CATALOGUE_SCHEMA as PROMPT_SCHEMA
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import Embeddings, write_shard
from dptr.cache.stores.verify import verify
from dptr.pipeline.photos import faiss_index
from dptr.pipeline.photos import mine_neighbours as module
from dptr.pipeline.photos.mine_neighbours import mine_neighbours

DIM = 16


def vectors(rows: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)


def add_shard(manifest: Manifest, folder: Path, pooled: NDArray[np.float32], schema: pa.Schema) -> None:
    rows, first = len(pooled), manifest.rows
    empty: dict[str, Any] = {"string": "", "binary": b""}
    columns = {f.name: [[] if pa.types.is_list(f.type) else empty.get(str(f.type), 1)] * rows for f in schema}
    columns["id"] = list(range(first, first + rows))
    columns["row"] = list(range(rows))
    columns["shard"] = [f"part-{len(manifest.shards):05d}"] * rows
    embeddings = Embeddings(pooled, np.ones(rows, np.int64), pooled)
    table = pa.table(columns, schema)
    manifest.shards.append(write_shard(folder, len(manifest.shards), table, embeddings, "float16", {"photos": 1}))
    manifest.save(folder)


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    folder = tmp_path / "orp"
    folder.mkdir()
    manifest = Manifest("orp", {"encoder": "made up", "weights": "w", "dtype": "float16", "tokens_per_crop": 1})
    for seed in range(2):
        add_shard(manifest, folder, vectors(100, seed), CATALOGUE_SCHEMA)
    faiss_index.write_index(OrpBank(folder))
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    folder = tmp_path / "prompts"
    folder.mkdir()
    identity = {"encoder": "made up", "weights": "w", "charset": "abc", "template": "{}", "context": "full"}
    manifest = Manifest("prompts", {**identity, "dtype": "float16"})
    for seed in (10, 11, 12):
        add_shard(manifest, folder, vectors(30, seed), PROMPT_SCHEMA)
    (folder / PREFIX_FILE).write_bytes(b"whole prompts share none")
    manifest.commit_files(folder, PREFIX_FILE)
    return folder


def test_neighbours_are_the_nearest_crops(prompts: Path, bank: Path) -> None:
    summary = mine_neighbours(prompts, bank, k=5)
    assert (summary.rows, summary.computed, summary.k, summary.recall) == (90, 90, 5, 1.0)
    queries = np.concatenate([vectors(30, seed) for seed in (10, 11, 12)])
    crops = np.concatenate([vectors(100, seed) for seed in (0, 1)])
    cosines = faiss_index.normalized(queries) @ faiss_index.normalized(crops).T
    neighbours = Neighbours.open(prompts, OrpBank(bank))
    assert (len(neighbours), neighbours.k) == (90, 5)
    rows = np.array([3, 89, 40, 3])
    found = neighbours.of(rows)
    assert found.dtype == np.int64
    # Stored in half precision, so neighbours of nearly equal cosine may change places.
    np.testing.assert_allclose(
        np.take_along_axis(cosines[rows], found, 1), -np.sort(-cosines[rows], axis=1)[:, :5], atol=2e-3
    )


def test_sql_reads_the_same(prompts: Path, bank: Path) -> None:
    mine_neighbours(prompts, bank, k=4)
    query = f"select id, crops, cosines from read_parquet('{prompts / NEIGHBOURS_TABLE}') order by id"
    rows = duckdb.connect().sql(query).fetchall()
    found = Neighbours.open(prompts, OrpBank(bank)).of(np.arange(90))
    assert [row[1] for row in rows] == found.tolist()
    assert all(list(row[2]) == sorted(row[2], reverse=True) for row in rows)


def test_a_finished_mining_is_not_repeated_but_another_k_is(prompts: Path, bank: Path) -> None:
    mine_neighbours(prompts, bank, k=4)
    assert mine_neighbours(prompts, bank, k=4).computed == 0
    assert mine_neighbours(prompts, bank, k=6).computed == 90
    assert Neighbours.open(prompts, OrpBank(bank)).k == 6
    assert not verify(prompts)


def test_a_killed_mining_leaves_what_was_there_and_is_repeated(
    prompts: Path, bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine_neighbours(prompts, bank, k=4)
    whole = (prompts / NEIGHBOURS_ARRAY).read_bytes()
    mine_neighbours(prompts, bank, k=5)
    searches = 0
    search = faiss_index.search

    def die_at_third(*arguments: object) -> object:
        nonlocal searches
        searches += 1
        if searches == 3:
            raise KeyboardInterrupt
        return search(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(module.faiss_index, "search", die_at_third)
        with pytest.raises(KeyboardInterrupt):
            mine_neighbours(prompts, bank, k=4)
    # What was there stays usable until the new is whole.
    assert Neighbours.open(prompts, OrpBank(bank)).k == 5
    assert not verify(prompts)
    assert mine_neighbours(prompts, bank, k=4).computed == 90
    assert (prompts / NEIGHBOURS_ARRAY).read_bytes() == whole
    assert not list(prompts.glob(".*.writing"))


def test_a_grown_bank_or_prompt_store_makes_neighbours_outdated(prompts: Path, bank: Path) -> None:
    mine_neighbours(prompts, bank, k=4)
    manifest = Manifest.load(bank, "orp")
    add_shard(manifest, bank, vectors(10, 5), CATALOGUE_SCHEMA)
    faiss_index.write_index(OrpBank(bank))
    with pytest.raises(DamagedStore, match="crops was 200, is 210"):
        Neighbours.open(prompts, OrpBank(bank))
    assert mine_neighbours(prompts, bank, k=4).computed == 90
    add_shard(Manifest.load(prompts, "prompts"), prompts, vectors(7, 13), PROMPT_SCHEMA)
    with pytest.raises(DamagedStore, match="prompts was 90, is 97"):
        Neighbours.open(prompts, OrpBank(bank))
    assert mine_neighbours(prompts, bank, k=4).rows == 97


def test_other_encoders_and_impossible_k_are_rejected(prompts: Path, bank: Path) -> None:
    with pytest.raises(UserError, match="k = 201"):
        mine_neighbours(prompts, bank, k=201)
    manifest = Manifest.load(prompts, "prompts")
    manifest.identity["weights"] = "others"
    manifest.save(prompts)
    with pytest.raises(DamagedStore, match="weights differ"):
        mine_neighbours(prompts, bank, k=4)


@pytest.mark.parametrize("name", [NEIGHBOURS_ARRAY, NEIGHBOURS_TABLE])
@pytest.mark.parametrize("damage", ["missing", "flipped bit"])
def test_missing_or_damaged_neighbours_are_searched_again(prompts: Path, bank: Path, name: str, damage: str) -> None:
    mine_neighbours(prompts, bank, k=4)
    whole = (prompts / name).read_bytes()
    (prompts / name).unlink()
    if damage == "flipped bit":
        (prompts / name).write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    assert [found.file for found in verify(prompts)] == [name]
    assert len(PromptStore(prompts)) == 90  # the embeddings are whole and can be used
    assert mine_neighbours(prompts, bank, k=4).computed == 90
    assert (prompts / name).read_bytes() == whole
    assert not verify(prompts)


def test_mining_builds_a_missing_index_again(prompts: Path, bank: Path) -> None:
    mine_neighbours(prompts, bank, k=4)
    expected = (prompts / NEIGHBOURS_ARRAY).read_bytes()
    (bank / INDEX_FILE).unlink()
    assert len(OrpBank(bank)) == 200
    mine_neighbours(prompts, bank, k=5)
    mine_neighbours(prompts, bank, k=4)
    assert (prompts / NEIGHBOURS_ARRAY).read_bytes() == expected
    assert not verify(bank)
