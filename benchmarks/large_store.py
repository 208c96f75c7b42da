"""A prompt store of a million rows: how fast it opens, when the first batch is there, and whether memory stays flat.

The store is made up: short states of few dimensions, since opening reads none of them. Resident memory counts mapped
pages of the store, which the kernel takes back when it needs them; what the process holds for itself is named apart.

Smallest size: --rows 2000 --batches 4
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from dptr.cache.file_names import PREFIX_FILE
from dptr.cache.stores.file_record import FileRecord
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import States, write_shard, write_states
from dptr.trainer.data.row_set import RowSet
from dptr.trainer.pretrain import PromptBatches
from dptr.trainer.training.recipe import load_recipe

SHARD_ROWS, TOKENS = 16384, 4
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="50,000 rows and 100 batches")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.batches = 50_000, 100
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), arguments.rows, arguments.dim)
        measure(Path(folder), arguments.batches)


def measure(folder: Path, batches: int) -> None:
    started = time.perf_counter()
    store = PromptStore(folder)
    opened = time.perf_counter()
    every_row = RowSet.of(np.arange(len(store)), len(store))
    made = PromptBatches(store, None, every_row, load_recipe("tiny"))
    made(0)
    first = time.perf_counter()
    PromptBatches(store, None, every_row, load_recipe("tiny"))(made_steps(store) // 2)
    middle = time.perf_counter()
    print(f"{len(store):,} rows: opened in {opened - started:.3f} s, first batch {first - opened:.2f} s later")
    print(f"a batch in the middle of an epoch, as after resuming: {middle - first:.2f} s")
    before = memory()
    for number in range(batches):
        made(number)
        if number + 1 == batches // 2:
            halfway = memory()
    after = memory()
    print(f"{'MB':>12}{'before':>10}{'halfway':>10}{'after':>10}  {batches} batches")
    for index, name in enumerate(("resident", "its own")):
        print(f"{name:>12}" + "".join(f"{moment[index]:10.0f}" for moment in (before, halfway, after)))


def made_steps(store: PromptStore) -> int:
    return len(store) // load_recipe("tiny").pretrain.batch_size


def memory() -> tuple[float, float]:
    """Resident memory in MB: all of it, and without pages of files."""
    information = psutil.Process().memory_info()
    return information.rss / 1e6, (information.rss - information.shared) / 1e6


def write_store(folder: Path, rows: int, dim: int) -> None:
    generator = np.random.default_rng(0)
    identity = {"encoder": "made up", "weights": "made up", "charset": "".join(LETTERS)}
    manifest = Manifest("prompts", identity)
    for number, start in enumerate(range(0, rows, SHARD_ROWS)):
        count = min(SHARD_ROWS, rows - start)
        lengths = generator.integers(2, 13, count)
        letters = LETTERS[generator.integers(0, len(LETTERS), (count, 12))]
        labels = ["".join(row[:length]) for row, length in zip(letters, lengths, strict=True)]
        catalogue = pa.table(
            {
                "label": labels,
                "label_length": pa.array(lengths, pa.int16()),
                "count": pa.array(np.ones(count, np.int64)),
                "source": ["made up"] * count,
            }
        )
        states = States(
            generator.standard_normal((count * TOKENS, dim)).astype(np.float32),
            np.full(count, TOKENS),
            np.zeros((count, dim), np.float32),
        )
        manifest.shards.append(write_shard(folder, number, catalogue, states, "float16", {}))
    prefix = np.zeros((5, dim), np.float32)
    write_states(folder / PREFIX_FILE, States(prefix, np.array([5]), prefix[:1]), "float16")
    manifest.files[PREFIX_FILE] = FileRecord.of(folder / PREFIX_FILE)
    manifest.save(folder)


if __name__ == "__main__":
    main()
