from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from dptr.cache.file_names import INDEX_FILE
from dptr.cache.progress import set_quiet
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.orp import CATALOGUE_SCHEMA, OrpBank
from dptr.cache.stores.shards import Embeddings, write_shard
from dptr.cache.stores.verify import verify
from dptr.pipeline.photos import faiss_index

DIM = 16


def make_bank(folder: Path, pooled: NDArray[np.float32], shards: int = 3) -> OrpBank:
    folder.mkdir(exist_ok=True)
    identity = {"encoder": "made up", "weights": "made up", "dtype": "float16", "tokens_per_crop": 1}
    manifest = Manifest("orp", identity)
    first = 0
    for number, block in enumerate(np.array_split(pooled, shards)):
        box = {"x": 0, "y": 0, "width": 1, "height": 1, "thumbnail": b""}
        of_shard = {"shard": f"part-{number:05d}", "image": "", "image_sha256": "", **box}
        rows = [{"id": first + i, "row": i, **of_shard} for i in range(len(block))]
        embeddings = Embeddings(block, np.ones(len(block), np.int64), block)
        table = pa.Table.from_pylist(rows, CATALOGUE_SCHEMA)
        manifest.shards.append(write_shard(folder, number, table, embeddings, "float16", {"photos": 1}))
        first += len(block)
    manifest.save(folder)
    return OrpBank(folder)


def clustered(rows: int, seed: int) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, DIM))
    return (centres[generator.integers(0, 40, rows)] + 0.3 * generator.standard_normal((rows, DIM))).astype(np.float32)


def true_neighbours(bank: OrpBank, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    rows = np.concatenate([bank.pooled(shard) for shard in range(len(bank.manifest.shards))])
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
    ).T
    return np.argsort(-cosines, axis=1)[:, :k]


def test_a_small_bank_is_searched_exactly(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, clustered(500, 0))
    faiss_index.write_index(bank)
    bank = OrpBank(tmp_path)
    queries = clustered(20, 1)
    cosines, crops = faiss_index.search(faiss_index.open_index(bank), queries, 5, 1)
    np.testing.assert_array_equal(crops, true_neighbours(bank, queries, 5))
    assert np.all(np.diff(cosines, axis=1) <= 0)
    assert np.all(cosines <= 1.001)
    assert bank.manifest.details["index"]["kind"] == "Flat"


def test_a_large_bank_has_inverted_lists_with_measured_recall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_index, "FLAT_BELOW", 3000)
    bank = make_bank(tmp_path, clustered(4000, 0))
    faiss_index.write_index(bank)
    bank = OrpBank(tmp_path)
    details = bank.manifest.details["index"]
    assert details["kind"] == "IVF,SQfp16"
    assert details["lists"] == 256
    assert details["recall_at_10"] >= faiss_index.TARGET_RECALL
    queries = clustered(200, 1)
    index = faiss_index.open_index(bank)
    ground_truth = true_neighbours(bank, queries, 10)
    found = faiss_index.search(index, queries, 10, details["probes"])[1]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, ground_truth, strict=True)])
    assert recall > 0.95
    # One list is not enough here: the number of lists was chosen, not left at FAISS's default.
    alone = faiss_index.search(index, queries, 10, 1)[1]
    assert details["probes"] > 1
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(alone, ground_truth, strict=True)]) < recall


def test_the_same_bank_has_the_same_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_index, "FLAT_BELOW", 3000)
    hashes = set()
    for name in ("one", "two"):
        bank = make_bank(tmp_path / name, clustered(4000, 0))
        faiss_index.write_index(bank)
        hashes.add(OrpBank(tmp_path / name).manifest.files[INDEX_FILE].xxh3)
    assert len(hashes) == 1


@pytest.mark.parametrize("damage", ["never written", "missing", "flipped bit", "cut short"])
def test_a_missing_or_damaged_index_is_built_again(
    tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    set_quiet(False)
    bank = make_bank(tmp_path, clustered(50, 0))
    path = tmp_path / INDEX_FILE
    if damage != "never written":
        faiss_index.write_index(bank)
        whole = path.read_bytes()
        path.unlink()
        if damage == "flipped bit":
            path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        elif damage == "cut short":
            path.write_bytes(whole[:100])
        assert [found.file for found in verify(tmp_path)] == [INDEX_FILE]
    index = faiss_index.open_index(OrpBank(tmp_path))
    assert capfd.readouterr().err.count("building it again") == 1
    queries = clustered(50, 0)[:4]
    np.testing.assert_array_equal(faiss_index.search(index, queries, 3, 1)[1], true_neighbours(bank, queries, 3))
    assert verify(tmp_path) == []
    faiss_index.open_index(OrpBank(tmp_path))
    assert "building it again" not in capfd.readouterr().err


def grow(folder: Path, pooled: NDArray[np.float32]) -> OrpBank:
    """Add a shard to a bank, as a run with more photos does."""
    manifest = Manifest.load(folder, "orp")
    first, number = manifest.rows, len(manifest.shards)
    box = {"x": 0, "y": 0, "width": 1, "height": 1, "thumbnail": b""}
    of_shard = {"shard": f"part-{number:05d}", "image": "", "image_sha256": "", **box}
    rows = [{"id": first + i, "row": i, **of_shard} for i in range(len(pooled))]
    embeddings = Embeddings(pooled, np.ones(len(pooled), np.int64), pooled)
    table = pa.Table.from_pylist(rows, CATALOGUE_SCHEMA)
    manifest.commit_shard(folder, write_shard(folder, number, table, embeddings, "float16", {"photos": 1}))
    manifest.save(folder)
    return OrpBank(folder)


def test_a_grown_bank_is_indexed_anew_also_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_index, "FLAT_BELOW", 1000)
    manifests = []
    for name in ("undisturbed", "killed"):
        folder = tmp_path / name
        faiss_index.write_index(make_bank(folder, clustered(2000, 0)))
        bank = grow(folder, clustered(100, 1))
        if name == "killed":
            with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
                killed.setattr(Manifest, "commit_files", interrupted)
                faiss_index.write_index(bank)
            assert verify(folder) == []
            bank = OrpBank(folder)
        faiss_index.write_index(bank)
        manifests.append((folder / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]
    queries = clustered(200, 9)
    bank = OrpBank(tmp_path / "killed")
    found = faiss_index.search(faiss_index.open_index(bank), queries, 10, bank.manifest.details["index"]["probes"])[1]
    ground_truth = true_neighbours(bank, queries, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, ground_truth, strict=True)]) > 0.95


def interrupted(manifest: Manifest, folder: Path, *names: str) -> None:
    raise KeyboardInterrupt
