"""Seconds that each query of docs/queries.md takes on a large store, opening the workspace apart.

The store is made up: labels of random letters, vectors of few dimensions, neighbours drawn at random, readings of two
runs. Each query runs several times; the best and the worst are printed, and the least processor time of all threads,
which says how long it takes where nothing else runs.

Smallest size: --rows 2000 --rounds 1
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from judged import at_least
from numpy.typing import NDArray

from dptr.cache.errors import run_script
from dptr.cache.file_names import NEIGHBOURS_TABLE, PREDICTIONS_FOLDER, QUARANTINE_FILE
from dptr.cache.sql.query import ask
from dptr.cache.sql.views import connect
from dptr.cache.stores.manifest import Manifest, Shard
from dptr.cache.stores.neighbours import TABLE_SCHEMA
from dptr.cache.stores.orp import CATALOGUE_SCHEMA as CROPS_SCHEMA
from dptr.cache.stores.prompts import CATALOGUE_SCHEMA
from dptr.cache.stores.quarantine import SCHEMA as REFUSED_SCHEMA
from dptr.cache.stores.shards import States, write_shard
from dptr.cache.workspace import Workspace
from dptr.trainer.predictions import SCHEMA as PREDICTIONS_SCHEMA

PAGE = Path(__file__).resolve().parents[1] / "docs" / "queries.md"
SHARD_ROWS = 16384
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEF"))
NEIGHBOURS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=at_least(1), default=1_000_000)
    parser.add_argument("--dim", type=at_least(1), default=64)
    parser.add_argument("--rounds", type=at_least(1), default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        write_workspace(workspace, arguments.rows, arguments.dim)
        measure(workspace, arguments.rounds)


def measure(workspace: Workspace, rounds: int) -> None:
    started = time.perf_counter()
    connection = connect(workspace)
    print(f"opened in {time.perf_counter() - started:.2f} s\n")
    print("| query | best, s | worst, s | processor, s | rows |\n| --- | --- | --- | --- | --- |")
    for title, query in queries(PAGE.read_text(encoding="utf-8")):
        seconds, used, rows = [], [], 0
        for _ in range(rounds):
            started, before = time.perf_counter(), time.process_time()
            rows = len(ask(connection, query).rows())
            seconds.append(time.perf_counter() - started)
            used.append(time.process_time() - before)
        print(f"| {title} | {min(seconds):.2f} | {max(seconds):.2f} | {min(used):.2f} | {rows} |", flush=True)


def queries(page: str) -> list[tuple[str, str]]:
    """Title and SQL of each query of the page."""
    return re.findall(r"\*\*(\d+\. .*?)\*\*.*?```sql\n(.*?)```", page, flags=re.DOTALL)


def write_workspace(workspace: Workspace, rows: int, dim: int) -> None:
    generator = np.random.default_rng(0)
    prompts = Manifest("prompts", {"encoder": "made up", "weights": "made up", "charset": "".join(LETTERS)})
    for number, start in enumerate(range(0, rows, SHARD_ROWS)):
        ids = np.arange(start, min(start + SHARD_ROWS, rows))
        prompts.shards.append(prompt_shard(workspace.prompts, number, ids, dim, generator))
    crops = max(rows // 10, 1)
    bank = Manifest("orp", {"encoder": "made up", "weights": "made up"})
    bank.shards.append(crop_shard(workspace.orp, crops, dim, generator))
    bank.save(workspace.orp)
    near = pa.array(generator.integers(0, crops, rows * NEIGHBOURS))
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * NEIGHBOURS)
    cosines = pa.array(np.zeros(rows * NEIGHBOURS, np.float32))
    lists = [pa.ListArray.from_arrays(offsets, values) for values in (near, cosines)]
    pq.write_table(pa.table([pa.array(np.arange(rows)), *lists], TABLE_SCHEMA), workspace.prompts / NEIGHBOURS_TABLE)
    refused = {
        "source": ["made up"] * crops,
        "line": range(crops),
        "item": ["x"] * crops,
        "reason": ["long: x"] * crops,
    }
    pq.write_table(pa.table(refused, REFUSED_SCHEMA), workspace.prompts / QUARANTINE_FILE)
    prompts.save(workspace.prompts)
    for name in ("english", "mine"):
        write_predictions(workspace.models / name / PREDICTIONS_FOLDER, crops, generator)


def prompt_shard(folder: Path, number: int, ids: NDArray[np.int64], dim: int, generator: np.random.Generator) -> Shard:
    lengths = generator.integers(2, 13, len(ids))
    letters = LETTERS[generator.integers(0, len(LETTERS), (len(ids), 12))]
    labels = ["".join(row[:length]) for row, length in zip(letters, lengths, strict=True)]
    if number == 0:
        labels[0] = "street"
    tokens = generator.integers(0, 49408, (len(ids), 5))
    columns = {
        "id": ids,
        "label": labels,
        "prompt": [f"a photo of a '{label}'" for label in labels],
        "label_length": list(map(len, labels)),
        "n_tokens": np.full(len(ids), 10),
        "token_ids": tokens.tolist(),
        "token_letters": [[1]] * len(ids),
        "states_of": ids,
        "count": np.ones(len(ids), np.int64),
        "source": [f"words-{number % 3}.txt"] * len(ids),
    }
    pooled = generator.standard_normal((len(ids), dim)).astype(np.float32)
    states = States(pooled, np.ones(len(ids), np.int64), pooled)
    return write_shard(folder, number, pa.table(columns, CATALOGUE_SCHEMA), states, "float16", {})


def crop_shard(folder: Path, rows: int, dim: int, generator: np.random.Generator) -> Shard:
    columns: dict[str, Any] = {field.name: np.arange(rows) for field in CROPS_SCHEMA}
    columns |= {"image": ["a.jpg"] * rows, "image_sha256": ["x"] * rows, "thumbnail": [b""] * rows}
    pooled = generator.standard_normal((rows, dim)).astype(np.float32)
    states = States(pooled, np.ones(rows, np.int64), pooled)
    return write_shard(folder, 0, pa.table(columns, CROPS_SCHEMA), states, "float16", {})


def write_predictions(folder: Path, rows: int, generator: np.random.Generator) -> None:
    correct = generator.random(rows) < 0.8
    columns = {
        "data": ["crops"] * rows,
        "key": [str(number) for number in range(rows)],
        "truth": ["street"] * rows,
        "reading": ["street" if right else "strect" for right in correct],
        "correct": correct,
        "length": generator.integers(2, 13, rows),
        "confidence": generator.random(rows),
        "character_confidences": [[0.5]] * rows,
        "step": [1] * rows,
    }
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns, PREDICTIONS_SCHEMA), folder / "a.parquet")


if __name__ == "__main__":
    run_script(main)
