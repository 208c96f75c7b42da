"""A workspace to query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dptr.cache.file_names import METRICS_FILE, PREDICTIONS_FOLDER, QUARANTINE_FILE, RECIPE_FILE, RUN_FILE
from dptr.cache.rejections import Quarantine
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.orp import CATALOGUE_SCHEMA as CROPS_SCHEMA
from dptr.cache.stores.prompts import CATALOGUE_SCHEMA
from dptr.cache.stores.shards import Embeddings, write_shard
from dptr.cache.workspace import Workspace

LABELS = ["street", "straße", "東京"]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace with a prompt store, a bank and two runs, in a folder whose name has to be quoted."""
    workspace = Workspace(tmp_path / "it's a [workspace]")
    with Quarantine(workspace.prompts / QUARANTINE_FILE) as quarantine:
        quarantine.reject("words.txt", 3, "x", "too long")
    rows = len(LABELS)
    embeddings = Embeddings(np.ones((rows, 4), np.float32), np.ones(rows, np.int64), np.eye(rows, 4, dtype=np.float32))
    columns: dict[str, Any] = {field.name: range(rows) for field in CATALOGUE_SCHEMA}
    columns |= {"label": LABELS, "prompt": LABELS, "source": LABELS, "token_ids": [[1]] * rows}
    columns["token_letters"] = [[1]] * rows
    prompts = Manifest("prompts", {"encoder": "made up", "weights": "w", "charset": "abc"})
    table = pa.table(columns, CATALOGUE_SCHEMA)
    prompts.shards.append(write_shard(workspace.prompts, 0, table, embeddings, "float16", {}))
    prompts.save(workspace.prompts)
    columns = {field.name: range(rows) for field in CROPS_SCHEMA}
    columns |= {"image": LABELS, "image_sha256": LABELS, "thumbnail": [b""] * rows}
    bank = Manifest("orp", {"encoder": "made up", "weights": "w"})
    bank.shards.append(write_shard(workspace.orp, 0, pa.table(columns, CROPS_SCHEMA), embeddings, "float16", {}))
    bank.save(workspace.orp)
    for name in ("one", "two"):
        run = workspace.runs / name
        (run / PREDICTIONS_FOLDER).mkdir(parents=True)
        checksummed.write_json(run / RUN_FILE, {"kind": "pretrain", "data": {name: {"rows": 3}}})
        (run / RECIPE_FILE).write_text("")
        (run / METRICS_FILE).write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 1.5, "validation_score": 0.5}\n')
        read = pa.table({"ground_truth": ["street"], "prediction": [name]})
        pq.write_table(read, run / PREDICTIONS_FOLDER / "a.parquet")
    return workspace
