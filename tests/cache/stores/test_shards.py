from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

from dptr.cache.choices import EmbeddingsDtype
from dptr.cache.errors import DamagedStore
from dptr.cache.stores import shards
from dptr.cache.stores.manifest import Shard
from dptr.cache.stores.shards import Embeddings, EmbeddingsFile, EmbeddingsReader, write_shard

DIM = 6


def made_up(rows: int, seed: int) -> Embeddings:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 5, rows)
    tokens = generator.standard_normal((int(lengths.sum()), DIM)).astype(np.float32)
    return Embeddings(tokens, lengths, generator.standard_normal((rows, 4)).astype(np.float32))


def write(folder: Path, number: int, embeddings: Embeddings, dtype: EmbeddingsDtype = "float16") -> Shard:
    catalogue = pa.table({"id": np.arange(len(embeddings.lengths)), "source": ["x"] * len(embeddings.lengths)})
    return write_shard(folder, number, catalogue, embeddings, dtype, {})


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", 2e-3), ("int8", 2e-2)])
def test_gather_returns_rows_in_the_order_asked_across_shards(
    tmp_path: Path, dtype: EmbeddingsDtype, tolerance: float
) -> None:
    first, second = made_up(5, 1), made_up(7, 2)
    reader = EmbeddingsReader(tmp_path, [write(tmp_path, 0, first, dtype), write(tmp_path, 1, second, dtype)])
    rows = np.array([11, 0, 5, 5, 4])
    got = reader.gather(rows)
    starts = [np.cumsum(s.lengths) - s.lengths for s in (first, second)]
    expected = []
    for row in rows:
        embeddings, begin, local = (first, starts[0], row) if row < 5 else (second, starts[1], row - 5)
        expected.append(embeddings.tokens[begin[local] : begin[local] + embeddings.lengths[local]])
    assert got.lengths.tolist() == [len(e) for e in expected]
    np.testing.assert_allclose(got.tokens, np.concatenate(expected), atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(got.pooled[1], first.pooled[0], atol=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_gather_tokens_picks_positions_within_rows(tmp_path: Path, dtype: EmbeddingsDtype) -> None:
    tokens = np.arange(24, dtype=np.float32).reshape(12, 2)
    embeddings = Embeddings(tokens, np.full(4, 3), np.zeros((4, 2), np.float32))
    catalogue = pa.table({"id": np.arange(4), "source": ["x"] * 4})
    reader = EmbeddingsReader(tmp_path, [write_shard(tmp_path, 0, catalogue, embeddings, dtype, {})])
    got = reader.gather_tokens(np.array([3, 0]), np.array([[2, 0], [1, 1]])).widened()
    np.testing.assert_allclose(got, [[tokens[11], tokens[9]], [tokens[1], tokens[1]]], atol=0.1)


def test_files_are_what_the_contract_says(tmp_path: Path) -> None:
    embeddings = made_up(3, 0)
    shard = write(tmp_path, 0, embeddings)
    assert set(shard.files) == {"part-00000.parquet", "part-00000.arrow"}
    with pa.memory_map(str(tmp_path / "part-00000.arrow")) as source:
        reader = ipc.open_file(source)
        assert reader.num_record_batches == 1
        column = reader.get_batch(0).column("embeddings")
        assert column.type == pa.list_(pa.list_(pa.float16(), DIM))
        assert len(column[1]) == embeddings.lengths[1]
    query = (
        f"select row, array_cosine_similarity(pooled::float[4], pooled::float[4]) from '{tmp_path}/part-00000.parquet'"
    )
    rows = duckdb.connect().sql(query).fetchall()
    assert [row for row, _ in rows] == [0, 1, 2]
    assert rows[0][1] == pytest.approx(1.0)


def test_reading_does_not_copy(tmp_path: Path) -> None:
    write(tmp_path, 0, made_up(50, 0))
    file = EmbeddingsFile(tmp_path / "part-00000.arrow")
    assert not file.tokens.flags.owndata
    assert not file.tokens.flags.writeable


def test_a_cut_file_is_damage(tmp_path: Path) -> None:
    write(tmp_path, 0, made_up(50, 0))
    path = tmp_path / "part-00000.arrow"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DamagedStore, match=r"part-00000\.arrow"):
        EmbeddingsFile(path)


def test_of_many_shards_those_used_last_stay_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_MOST_MAPPED", 2)
    one = Embeddings(np.ones((1, 4), np.float32), np.array([1]), np.ones((1, 4), np.float32))
    written = [write_shard(tmp_path, number, pa.table({"id": [number]}), one, "float16", {}) for number in range(4)]
    reader = EmbeddingsReader(tmp_path, written)
    first = reader.file(0)
    assert reader.file(1) is not first
    assert reader.file(0) is first
    reader.file(2)
    assert reader.file(0) is first, "used after the other"
    assert len(reader._files) == 2
    assert len(reader.gather(np.arange(4)).lengths) == 4


@pytest.mark.parametrize("offset", [1 << 30, -1])
def test_offsets_that_lead_out_of_the_file_are_damage(offset: int, tmp_path: Path) -> None:
    write(tmp_path, 0, made_up(5, 1))
    path = tmp_path / "part-00000.arrow"
    offsets = EmbeddingsFile(path).offsets.tobytes()
    data = path.read_bytes()
    at = data.index(offsets) + 8
    path.write_bytes(data[:at] + offset.to_bytes(4, "little", signed=True) + data[at + 4 :])
    with pytest.raises(DamagedStore, match=r"part-00000.arrow cannot be read"):
        EmbeddingsFile(path)
