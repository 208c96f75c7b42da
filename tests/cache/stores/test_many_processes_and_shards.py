"""Stores go to spawned processes by path, and hold no descriptor however many shards they have."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from dptr.cache.file_names import INDEX_FILE, NEIGHBOURS_ARRAY, PREFIX_FILE
from dptr.cache.stores.manifest import FileRecord, Manifest, StoreKind
from dptr.cache.stores.neighbours import Neighbours
from dptr.cache.stores.orp import CATALOGUE_SCHEMA as CROPS
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import CATALOGUE_SCHEMA as PROMPTS
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import Embeddings, write_embeddings, write_shard

DIM = 4


def write_store(folder: Path, kind: StoreKind, shards: int) -> Path:
    """Write a store whose row i has one token, filled with i."""
    folder.mkdir()
    manifest = Manifest(kind, {"encoder": "made up", "weights": "w", "charset": "abc", "tokens_per_crop": 1})
    empty: dict[str, Any] = {"string": "a", "binary": b""}
    schema = PROMPTS if kind == "prompts" else CROPS
    for number in range(shards):
        values = np.full((1, DIM), number, np.float32)
        columns = {f.name: [[] if pa.types.is_list(f.type) else empty.get(str(f.type), 1)] for f in schema}
        embeddings = Embeddings(values, np.ones(1, np.int64), values)
        manifest.shards.append(write_shard(folder, number, pa.table(columns, schema), embeddings, "float32", {}))
    write_embeddings(folder / PREFIX_FILE, Embeddings(values, np.ones(1, np.int64), values), "float32")
    manifest.files[PREFIX_FILE] = FileRecord.of(folder / PREFIX_FILE)
    manifest.files[INDEX_FILE] = FileRecord(0, "")
    manifest.save(folder)
    return folder


def read_all(store: PromptStore, bank: OrpBank, neighbours: Neighbours) -> list[NDArray[Any]]:
    """Read something of each; also in a spawned process."""
    rows = np.array([2, 0])
    first = np.zeros((2, 1), np.int64)
    return [
        store.embeddings(rows).tokens,
        store.prefix,
        store.label_lengths,
        bank.tokens(rows, first),
        neighbours.of(rows),
    ]


def test_stores_go_to_spawned_processes(tmp_path: Path) -> None:
    store = PromptStore(write_store(tmp_path / "prompts", "prompts", 3))
    bank = OrpBank(write_store(tmp_path / "orp", "orp", 3))
    np.save(tmp_path / NEIGHBOURS_ARRAY, np.arange(6, dtype=np.int32).reshape(3, 2))
    neighbours = Neighbours(tmp_path / NEIGHBOURS_ARRAY)
    here = read_all(store, bank, neighbours)  # all files are mapped now
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(read_all, (store, bank, neighbours))
    assert len(there) == 5
    for mine, theirs in zip(here, there, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(here[0], [[2.0] * DIM, [0.0] * DIM])


FEW_DESCRIPTORS = """
import resource, sys
import numpy as np
from pathlib import Path
from dptr.cache.stores.prompts import PromptStore
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
store = PromptStore(Path(sys.argv[1]))
rows = np.arange(len(store))
tokens = store.embeddings(rows).tokens
assert (tokens[:, 0] == rows).all() and len(store.labels) == len(rows)
store._reader.release()
assert (store.embeddings(rows).tokens == tokens).all()
print(len(rows))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of this kind")
def test_more_shards_than_descriptors(tmp_path: Path) -> None:
    folder = write_store(tmp_path / "prompts", "prompts", 100)
    ended = subprocess.run([sys.executable, "-c", FEW_DESCRIPTORS, str(folder)], capture_output=True, text=True)
    assert ended.stdout == "100\n", ended.stderr
