"""How fast prompts find their nearest crops: the index that a bank of this size gets against an exact search.

Vectors are made up, in clusters, as pooled vectors of real pictures are. Rates hold for this machine, ratios travel.

Smallest size: --prompts 200 --crops 300 --dim 32 --clusters 20 -k 10 --flat-queries 100
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from common import at_least
from numpy.typing import NDArray

from dptr.cache.errors import run_script
from dptr.cache.stores.manifest import Manifest, StoreKind
from dptr.cache.stores.neighbours import Neighbours
from dptr.cache.stores.orp import CATALOGUE_SCHEMA, OrpBank
from dptr.cache.stores.prompts import CATALOGUE_SCHEMA as PROMPT_SCHEMA
from dptr.cache.stores.shards import Embeddings, write_shard
from dptr.pipeline.photos import faiss_index
from dptr.pipeline.photos.faiss_index import normalized
from dptr.pipeline.photos.mine_neighbours import mine_neighbours

SHARD_ROWS = 16384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=at_least(1), default=100_000)
    parser.add_argument("--crops", type=at_least(1), default=100_000)
    parser.add_argument("--dim", type=at_least(1), default=512)
    parser.add_argument("--clusters", type=at_least(1), default=2000)
    parser.add_argument("--spread", type=float, default=1.0, help="size of a cluster; 1 is the length of its centre")
    parser.add_argument("-k", type=at_least(1), default=32)
    parser.add_argument(
        "--flat-queries", type=at_least(0), default=10_000, help="prompts that the exact search is timed on"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    crops, prompts = clustered(arguments, arguments.crops, 1), clustered(arguments, arguments.prompts, 2)
    write_store(folder / "orp", "orp", crops)
    write_store(folder / "prompts", "prompts", prompts)
    bank = OrpBank(folder / "orp")
    started = time.perf_counter()
    faiss_index.write_index(bank)
    building = time.perf_counter() - started
    print(f"index of {len(bank):,} crops built in {building:.1f} s: {bank.manifest.details['index']}")

    flat = faiss.IndexFlatIP(arguments.dim)
    flat.add(normalized(crops))
    queries = normalized(prompts[: arguments.flat_queries])
    before = flat_rate(flat, queries[: len(queries) // 2], arguments.k)
    summary = mine_neighbours(folder / "prompts", folder / "orp", arguments.k)
    after = flat_rate(flat, queries[len(queries) // 2 :], arguments.k)
    flat_search = (before + after) / 2
    mined = summary.rows / summary.seconds
    ground_truth = flat.search(queries, 10)[1]
    found = Neighbours.open(folder / "prompts", bank).of(np.arange(len(queries)))[:, :10]
    recall = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, ground_truth, strict=True)])
    print(f"{'flat search':36} {flat_search:10.0f} prompts/s    1.0   recall@10 1.0000")
    print(f"{'mine_neighbours, files included':36} {mined:10.0f} prompts/s {mined / flat_search:6.1f}   ", end="")
    print(f"recall@10 {recall:.4f} on {len(queries):,} prompts, {summary.probes} lists visited")


def clustered(arguments: argparse.Namespace, rows: int, seed: int) -> NDArray[np.float32]:
    """Return vectors around common centres, shape (rows, dim)."""
    centres = np.random.default_rng(0).standard_normal((arguments.clusters, arguments.dim), dtype=np.float32)
    generator = np.random.default_rng(seed)
    noise = generator.standard_normal((rows, arguments.dim), dtype=np.float32)
    vectors: NDArray[np.float32] = centres[generator.integers(0, arguments.clusters, rows)] + arguments.spread * noise
    return vectors


def write_store(folder: Path, kind: StoreKind, pooled: NDArray[np.float32]) -> None:
    folder.mkdir()
    manifest = Manifest(kind, {"encoder": "made up", "weights": "made up", "tokens_per_crop": 1, "charset": "a"})
    schema = CATALOGUE_SCHEMA if kind == "orp" else PROMPT_SCHEMA
    for first in range(0, len(pooled), SHARD_ROWS):
        block = pooled[first : first + SHARD_ROWS]
        columns = [pa.nulls(len(block), field.type) for field in schema]
        columns[0] = pa.array(np.arange(first, first + len(block)))
        embeddings = Embeddings(block[:, :8], np.ones(len(block), np.int64), block)
        table = pa.table(columns, schema)
        manifest.shards.append(write_shard(folder, len(manifest.shards), table, embeddings, "float16", {"photos": 1}))
    manifest.save(folder)


def flat_rate(flat: faiss.IndexFlatIP, queries: NDArray[np.float32], k: int) -> float:
    started = time.perf_counter()
    flat.search(queries, k)
    return len(queries) / (time.perf_counter() - started)


if __name__ == "__main__":
    run_script(main)
