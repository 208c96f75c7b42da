"""What it costs to keep pooled vectors twice, in the catalogue for questions and beside the states for training.

A prompt store is made up. Bytes of each place are told, then what a training would wait for if vectors lay in one place
alone: random batches from the mapped file, and from the catalogue, of which a reader decodes whole row groups; and a
question by cosine from the catalogue, and over the mapped file by a program, since DuckDB reads no Arrow files.

Smallest size: --rows 300 --dim 8 --batches 2
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from judged import at_least
from numpy.typing import NDArray

from dptr.cache.errors import run_script
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.shards import States, StatesReader, write_shard

BATCH, TOKENS = 256, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=at_least(1), default=16384)
    parser.add_argument("--dim", type=at_least(1), default=512)
    parser.add_argument("--batches", type=at_least(1), default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.rows, arguments.dim, arguments.batches)


def measure(folder: Path, rows: int, dim: int, batches: int) -> None:
    generator = np.random.default_rng(0)
    manifest = written(folder, rows, dim, generator)
    catalogue, states = folder / manifest.shards[0].catalogue, folder / manifest.shards[0].states
    column = pq.read_metadata(catalogue).row_group(0)
    names = [column.column(number).path_in_schema for number in range(column.num_columns)]
    pooled = column.column(next(number for number, name in enumerate(names) if name.startswith("pooled")))
    of_catalogue = pooled.total_compressed_size / column.num_rows
    size = catalogue.stat().st_size + states.stat().st_size
    print(
        f"{size / rows:,.0f} bytes a row: {of_catalogue:,.0f} of them are pooled in the catalogue, {2 * dim:,} mapped"
    )
    reader = StatesReader(folder, manifest.shards)
    draws = [np.sort(generator.integers(0, rows, BATCH)) for _ in range(batches)]
    tell(f"a batch of {BATCH} from the mapped file", lambda: [reader.gather_pooled(draw) for draw in draws], batches)
    tell(f"a batch of {BATCH} from the catalogue", lambda: [from_catalogue(catalogue, draw) for draw in draws], batches)
    wanted = generator.standard_normal(dim).astype(np.float32)
    question = f"select row from '{catalogue}' order by array_cosine_similarity(pooled::FLOAT[{dim}], $1) desc limit 10"
    question = question.replace("$1", f"$1::FLOAT[{dim}]")
    with duckdb.connect() as database:
        tell(
            "ten nearest rows, asked of the catalogue",
            lambda: database.execute(question, [wanted.tolist()]).fetchall(),
        )
    tell("ten nearest rows, from the mapped file", lambda: nearest(reader, wanted))


def written(folder: Path, rows: int, dim: int, generator: np.random.Generator) -> Manifest:
    tokens = generator.standard_normal((rows * TOKENS, dim)).astype(np.float32)
    states = States(tokens, np.full(rows, TOKENS), generator.standard_normal((rows, dim)).astype(np.float32))
    manifest = Manifest("prompts", {"encoder": "made up", "weights": "made up"})
    table = pa.table({"id": np.arange(rows), "label": [f"word{number}" for number in range(rows)]})
    manifest.shards.append(write_shard(folder, 0, table, states, "float16", {}))
    manifest.save(folder)
    return manifest


def from_catalogue(path: Path, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the pooled vectors of rows, in order, shape (rows, dim), from the row groups that hold them."""
    with pq.ParquetFile(path, memory_map=True) as file:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        firsts = np.cumsum([0, *sizes])
        found = []
        for group in np.unique(np.searchsorted(firsts, rows, side="right") - 1).tolist():
            inside = rows[(rows >= firsts[group]) & (rows < firsts[group + 1])] - firsts[group]
            column = file.read_row_group(group, columns=["pooled"]).column(0).combine_chunks()
            vectors = column.flatten().to_numpy().reshape(sizes[group], -1)
            found.append(vectors[inside])
    return np.concatenate(found)


def nearest(reader: StatesReader, wanted: NDArray[np.float32]) -> NDArray[np.intp]:
    vectors = reader.file(0).pooled.astype(np.float32)
    cosines = vectors @ wanted / np.linalg.norm(vectors, axis=1)
    return np.argsort(-cosines)[:10]


def tell(what: str, work: Callable[[], object], times: int = 1) -> None:
    work()
    started, spent = time.perf_counter(), time.process_time()
    work()
    seconds, of_cpu = time.perf_counter() - started, time.process_time() - spent
    print(f"{what:44} {1e3 * seconds / times:10.2f} ms, {1e3 * of_cpu / times:10.2f} of CPU", flush=True)


if __name__ == "__main__":
    run_script(main)
