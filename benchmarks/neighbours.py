"""How fast prompts find their nearest crops: the index that a bank of this size gets against an exact search.

Vectors are made up, in clusters, as pooled vectors of real pictures are. Rates hold for this machine, ratios travel.
--grow adds crops to a bank that is indexed, in as many steps as --steps says, and tells what each costs, and how many
of the ten nearest crops of prompts are found then, beside an index that is built of all crops anew.

Smallest size: --prompts 200 --crops 300 --dim 32 --clusters 20 -k 10 --flat-queries 100 --grow 10 --steps 2
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from judged import at_least
from numpy.typing import NDArray

from dptr.cache.errors import run_script
from dptr.cache.stores.manifest import Manifest, StoreKind
from dptr.cache.stores.neighbours import Neighbours
from dptr.cache.stores.orp import CATALOGUE_SCHEMA, OrpBank
from dptr.cache.stores.prompts import CATALOGUE_SCHEMA as PROMPT_SCHEMA
from dptr.cache.stores.shards import Embeddings, write_shard
from dptr.pipeline.photos import faiss_index
from dptr.pipeline.photos.exact import exact_neighbours, normalized
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
    parser.add_argument(
        "--grow", type=at_least(0), default=0, help="crops that are added in each step, and nothing else"
    )
    parser.add_argument("--steps", type=at_least(1), default=3)
    arguments = parser.parse_args()
    if arguments.grow:
        with tempfile.TemporaryDirectory() as folder:
            measure_growth(arguments, Path(folder) / "orp")
        return
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


def measure_growth(arguments: argparse.Namespace, folder: Path) -> None:
    """Add crops to an indexed bank step by step, then index all of them anew."""
    crops = clustered(arguments, arguments.crops + arguments.steps * arguments.grow, 1)
    queries = normalized(clustered(arguments, arguments.flat_queries, 2))
    write_store(folder, "orp", crops[: arguments.crops])
    tell_index(folder, "indexed as a whole", crops[: arguments.crops], queries)
    for step in range(arguments.steps):
        first = arguments.crops + step * arguments.grow
        manifest = Manifest.load(folder, "orp")
        add_shards(folder, manifest, crops[first : first + arguments.grow])
        manifest.save(folder)
        tell_index(folder, f"{arguments.grow:,} crops added", crops[: first + arguments.grow], queries)
    manifest = Manifest.load(folder, "orp")
    del manifest.details["index"]
    manifest.save(folder)
    tell_index(folder, "indexed anew", crops, queries)


def tell_index(folder: Path, what: str, crops: NDArray[np.float32], queries: NDArray[np.float32]) -> None:
    """Index what a bank has; print what that cost, and how much the index finds of the prompts' ten nearest crops."""
    bank = OrpBank(folder)
    before = {name: record.sha256 for name, record in bank.manifest.files.items()}
    started, spent = time.perf_counter(), time.process_time()
    faiss_index.write_index(bank)
    seconds, of_cpu = time.perf_counter() - started, time.process_time() - spent
    bank = OrpBank(folder)
    files = bank.manifest.files
    written = sum(known.bytes for name, known in files.items() if before.get(name) != known.sha256) / 1e6
    known = bank.manifest.details["index"]
    found = faiss_index.search(faiss_index.open_index(bank), queries, 10, known["probes"])[1]
    ground_truth = exact_neighbours(queries, [normalized(crops)], 10)
    recall = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, ground_truth, strict=True)])
    print(
        f"{what:24} {seconds:8.2f} s {of_cpu:8.2f} of CPU, {written:8.1f} MB written, recall@10 {recall:.4f} ", end=""
    )
    print(f"at {known['probes']} of {known['lists']} lists, segments {known.get('segments')}", flush=True)


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
    add_shards(folder, manifest, pooled)
    manifest.save(folder)


def add_shards(folder: Path, manifest: Manifest, pooled: NDArray[np.float32]) -> None:
    schema = CATALOGUE_SCHEMA if manifest.kind == "orp" else PROMPT_SCHEMA
    rows = manifest.rows
    for first in range(0, len(pooled), SHARD_ROWS):
        block = pooled[first : first + SHARD_ROWS]
        columns = [pa.nulls(len(block), field.type) for field in schema]
        columns[0] = pa.array(np.arange(rows + first, rows + first + len(block)))
        embeddings = Embeddings(block[:, :8], np.ones(len(block), np.int64), block)
        table = pa.table(columns, schema)
        manifest.shards.append(write_shard(folder, len(manifest.shards), table, embeddings, "float16", {"photos": 1}))


def flat_rate(flat: faiss.IndexFlatIP, queries: NDArray[np.float32], k: int) -> float:
    started = time.perf_counter()
    flat.search(queries, k)
    return len(queries) / (time.perf_counter() - started)


if __name__ == "__main__":
    run_script(main)
