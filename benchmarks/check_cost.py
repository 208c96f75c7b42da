"""What it costs to compare stored files with their hashes when they are first used: hashing alone, and beside batches.

A made-up prompt store is read in random batches, as training reads it, with the checks in the background and without.

Smallest size: --megabytes 4 --batches 5
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from judged import at_least

from dptr.cache.errors import run_script
from dptr.cache.file_names import PREFIX_FILE
from dptr.cache.progress import set_quiet
from dptr.cache.stores import checks
from dptr.cache.stores.files import sha256_of, xxh3_of
from dptr.cache.stores.manifest import FileRecord, Manifest
from dptr.cache.stores.prompts import CATALOGUE_SCHEMA, PromptStore
from dptr.cache.stores.shards import States, write_shard, write_states

_TOKENS, _DIM, _SHARDS = 8, 512, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=at_least(1), default=512)
    parser.add_argument("--batches", type=at_least(1), default=500)
    parser.add_argument("--batch-size", type=at_least(1), default=256)
    arguments = parser.parse_args()
    set_quiet(True)
    with tempfile.TemporaryDirectory(prefix="dptr-") as name:
        folder = Path(name)
        make_store(folder, arguments.megabytes)
        states = sorted(folder.glob("part-*.arrow"))
        size = sum(path.stat().st_size for path in states) / 1e9
        for hashed, way in (("SHA-256", sha256_of), ("XXH3", xxh3_of)):
            print(f"{hashed}: {size / seconds(partial(hash_all, way, states)):.2f} GB/s", flush=True)
        for off in (True, False, True, False):
            checks.turn_off(off)
            for path in states:
                os.utime(path)  # as if it were new to this process
            store = PromptStore(folder)
            took = seconds(partial(read, store, arguments.batches, arguments.batch_size))
            waited = seconds(checks.finish)
            told = "without checks" if off else f"with checks, {waited:.2f} s of which were waited for at the end"
            print(f"{arguments.batches} batches of {arguments.batch_size}: {took + waited:.2f} s {told}", flush=True)


def make_store(folder: Path, megabytes: int) -> None:
    """Write a prompt store of random states."""
    rows = max(1, megabytes * 1_000_000 // (_SHARDS * _TOKENS * _DIM * 2))
    manifest = Manifest("prompts", {"encoder": "made up", "weights": "w", "charset": "abc"})
    values = np.random.default_rng(0).standard_normal((rows * _TOKENS, _DIM), np.float32)
    lengths = np.full(rows, _TOKENS)
    for number in range(_SHARDS):
        catalogue = pa.Table.from_pylist(
            [{"id": manifest.rows + row, "label": "a"} for row in range(rows)], CATALOGUE_SCHEMA
        )
        states = States(values, lengths, np.ones((rows, 4), np.float32))
        manifest.shards.append(write_shard(folder, number, catalogue, states, "float16", {}))
    prefix = States(np.ones((2, _DIM), np.float32), np.array([2]), np.ones((1, 4), np.float32))
    write_states(folder / PREFIX_FILE, prefix, "float32")
    manifest.files[PREFIX_FILE] = FileRecord.of(folder / PREFIX_FILE)
    manifest.save(folder)


def hash_all(way: Callable[[Path], str], paths: list[Path]) -> list[str]:
    """Hash files one way."""
    return [way(path) for path in paths]


def read(store: PromptStore, batches: int, size: int) -> None:
    """Gather random rows, as a training does."""
    store.check_states()
    generator = np.random.default_rng(0)
    for _ in range(batches):
        store.states(np.sort(generator.integers(0, len(store), size)))


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    run_script(main)
