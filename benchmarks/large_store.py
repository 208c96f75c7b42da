"""A prompt store of a hundred million rows: how fast it opens, when the first batch is there, what a process holds.

The store is made up: two embeddings of eight numbers a row, since opening reads none of them and a batch reads its own
rows'. Only the first 64 shards are files of their own, the others are hard links to them: each is opened and mapped as
any other, but all embeddings fit into the page cache, so how fast the disk reads is not measured. A process's own
memory (USS) is what would be free again if it alone ended; pages of the store that no other process has mapped at the
moment count to it, though the kernel takes them back when it needs them, so memory without pages of files is named
apart. Hashes are not compared meanwhile (DPTR_NO_CHECK).

Smallest size: --rows 2000 --batches 4 --workers 1
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
from common import at_least, megabytes_without_files, own_megabytes
from torch.utils.data import get_worker_info

from dptr.cache.errors import run_script
from dptr.cache.file_names import PREFIX_FILE
from dptr.cache.stores.manifest import FileRecord, Manifest, Shard
from dptr.cache.stores.prompt_rows import write_rows
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import Embeddings, write_embeddings, write_shard
from dptr.trainer.data.prompt_batches import PromptBatches, split_rows
from dptr.trainer.recipe import load_recipe
from dptr.trainer.training.loop import load_batches

SHARD_ROWS, TOKENS, LONGEST, DISTINCT_SHARDS = 16384, 2, 12, 64
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=at_least(1), default=100_000_000)
    parser.add_argument("--dim", type=at_least(1), default=8)
    parser.add_argument("--batches", type=at_least(1), default=200)
    parser.add_argument("--workers", type=at_least(0), default=4)
    parser.add_argument("--store", type=Path, help="an empty folder to keep the store in, or one that has it")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.store, arguments.batches, arguments.workers)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.store or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            write_store(folder, arguments.rows, arguments.dim)
        # In a process of its own: what it holds is not what writing the store left behind.
        asked = ["--store", str(folder), "--batches", str(arguments.batches), "--workers", str(arguments.workers)]
        surroundings = {**os.environ, "DPTR_NO_CHECK": "1"}
        subprocess.run([sys.executable, __file__, "--measure", *asked], check=True, env=surroundings)


def measure(folder: Path, batches: int, workers: int) -> None:
    recipe = load_recipe("tiny")
    print(f"{'':44}{'seconds':>10}{'of CPU':>10}{'own MB':>10}{'without files':>15}")
    tell("torch and dptr imported", None)
    started = time.perf_counter()
    store = PromptStore(folder)
    tell(f"{len(store):,} rows opened", started)
    started = time.perf_counter()
    _, training = split_rows(store, recipe)
    tell("validation rows chosen", started)
    made = PromptBatches(store, None, training, recipe)
    made(0)
    tell("first batch there, both included", started)
    started = time.perf_counter()
    for number in range(batches):
        made(number)
    tell(f"{batches} batches in turn", started)
    if workers:
        held = [0.0] * workers
        started = time.perf_counter()
        for number, own in load_batches(OwnMemory(made), range(batches), workers):
            held[number] = max(held[number], own)
        told = ", ".join(f"{own:.0f}" for own in held)
        print(f"{batches} batches by {workers} workers: {time.perf_counter() - started:.2f} s; own MB of each: {told}")
    maps = Path("/proc/self/maps")
    mapped = sum(1 for _ in maps.open()) if maps.exists() else 0
    print(f"descriptors {psutil.Process().num_fds()}, mappings {mapped}")


class OwnMemory:
    """Makes batches; returns the number of the worker that made one, and that worker's memory in MB."""

    def __init__(self, batches: PromptBatches) -> None:
        self._batches = batches

    def __call__(self, number: int) -> tuple[int, float]:
        """Make batch ``number``."""
        self._batches(number)
        worker = get_worker_info()
        return (worker.id if worker else 0), own_megabytes()


def tell(what: str, started: float | None) -> None:
    seconds = "" if started is None else f"{time.perf_counter() - started:.3f}"
    own, without_files, spent = own_megabytes(), megabytes_without_files(), time.process_time()
    print(f"{what:44}{seconds:>10}{spent - _spent[-1]:10.3f}{own:10.0f}{without_files:15.0f}", flush=True)
    _spent.append(time.process_time())


_spent = [0.0]


def write_store(folder: Path, rows: int, dim: int) -> None:
    started = time.perf_counter()
    generator = np.random.default_rng(0)
    identity = {"encoder": "made up", "weights": "made up", "charset": LETTERS}
    manifest = Manifest("prompts", identity)
    for number, start in enumerate(range(0, rows, SHARD_ROWS)):
        count = min(SHARD_ROWS, rows - start)
        if number >= DISTINCT_SHARDS and count == SHARD_ROWS:
            manifest.shards.append(linked(folder, manifest.shards[number % DISTINCT_SHARDS], number))
            continue
        labels = made_up_labels(count, generator)
        columns = {
            "label": labels,
            "label_length": pc.utf8_length(labels).cast(pa.int16()),
            "count": pa.array(np.ones(count, np.int64)),
            "source": ["made up"] * count,
        }
        embeddings = Embeddings(
            generator.standard_normal((count * TOKENS, dim)).astype(np.float32),
            np.full(count, TOKENS),
            np.zeros((count, dim), np.float32),
        )
        manifest.shards.append(write_shard(folder, number, pa.table(columns), embeddings, "float16", {}))
    prefix = np.zeros((5, dim), np.float32)
    write_embeddings(folder / PREFIX_FILE, Embeddings(prefix, np.array([5]), prefix[:1]), "float16")
    manifest.files[PREFIX_FILE] = FileRecord.of(folder / PREFIX_FILE)
    manifest.save(folder)
    written = time.perf_counter()
    write_rows(folder, manifest)
    total = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"{rows:,} rows in {len(manifest.shards):,} shards, {total / 1e9:.2f} GB counting links, in "
        f"{written - started:.0f} s; what every start needs in {time.perf_counter() - written:.0f} s"
    )


def linked(folder: Path, shard: Shard, number: int) -> Shard:
    """Return a shard of another number whose files are those of ``shard``."""
    name = f"part-{number:05d}"
    files = {file.replace(shard.name, name): record for file, record in shard.files.items()}
    for old, new in zip(shard.files, files, strict=True):
        os.link(folder / old, folder / new)
    return Shard(name, shard.rows, files)


def made_up_labels(count: int, generator: np.random.Generator) -> pa.StringArray:
    offsets = np.zeros(count + 1, np.int32)
    np.cumsum(generator.integers(2, LONGEST + 1, count), out=offsets[1:])
    letters = np.frombuffer(LETTERS.encode(), np.uint8)[generator.integers(0, len(LETTERS), int(offsets[-1]))]
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(letters))


if __name__ == "__main__":
    run_script(main)
