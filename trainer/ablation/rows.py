"""Rows of an ablation: one for each trial and test set, in one Parquet file that is whole after every trial."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dptr.cache.errors import DamagedStore
from dptr.cache.stores.files import atomic_path

Row = dict[str, Any]

#: ``run`` is the key of what was trained, ``test_sha256`` of what was read; ``right`` holds for each of ``images``
#: whether it was read exactly. ``against`` is the arm that this one is compared with: empty for none, null in files of
#: earlier versions, which knew the base alone. ``seconds`` are those of training steps alone.
SCHEMA = pa.schema(
    [
        ("ablation", pa.string()),
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("base", pa.bool_()),
        ("against", pa.string()),
        ("start", pa.string()),
        ("run", pa.string()),
        ("test", pa.string()),
        ("test_sha256", pa.string()),
        ("protocol", pa.string()),
        ("words", pa.int64()),
        ("accuracy", pa.float64()),
        ("one_minus_ned", pa.float64()),
        ("steps", pa.int64()),
        ("seconds", pa.float64()),
        ("pretrain_steps", pa.int64()),
        ("pretrain_seconds", pa.float64()),
        ("crops", pa.int64()),
        ("parameters", pa.int64()),
        ("images", pa.list_(pa.string())),
        ("right", pa.list_(pa.bool_())),
    ]
)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, none when there is no such file.

    Raises:
        DamagedStore: it cannot be read, or has other columns.
    """
    if not path.is_file():
        return []
    try:
        rows: list[Row] = pq.read_table(path, schema=SCHEMA).to_pylist()
        return rows
    except (pa.ArrowException, OSError) as error:
        raise DamagedStore(
            f"{path} cannot be read ({str(error).splitlines()[0]})",
            "Remove it: the same `dptr ablate` reads the tests again and trains nothing anew",
        ) from error


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows, atomically."""
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), temporary, compression="zstd")
