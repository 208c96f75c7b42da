"""Parquet with encoded images and their labels, as dptr packs them and as Hugging Face's datasets store them.

Reading one image decodes its row group, so LMDB is the better form for training in random order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dptr.cache.errors import UserError

_IMAGE_COLUMNS = ("image", "jpg", "png")
_LABEL_COLUMNS = ("label", "text", "txt")
_FILES_KEPT = 64
_ROW_GROUPS_KEPT = 8


@dataclass(frozen=True)
class ParquetSource:
    """One file with a column of images (bytes, or a struct of bytes and path) and one of labels."""

    path: Path

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.path)

    def labels(self) -> Iterator[tuple[str, str | None]]:
        """Yield row number and label of each row.

        Raises:
            UserError: it is damaged, or lacks a column of images or one of labels.
        """
        file = _open(str(self.path), os.getpid()).file
        _column(file, _IMAGE_COLUMNS, self.path)
        row = 0
        for batch in file.iter_batches(columns=[_column(file, _LABEL_COLUMNS, self.path)]):
            for label in batch.column(0).to_pylist():
                yield str(row), label if isinstance(label, str) else None
                row += 1

    def read(self, key: str) -> bytes:
        """Return one encoded image.

        Raises:
            KeyError, OSError: it is missing or cannot be read.
        """
        row = int(key)
        first_rows = _open(str(self.path), os.getpid()).first_rows
        group = int(np.searchsorted(first_rows, row, side="right")) - 1
        try:
            value = _images(str(self.path), os.getpid(), group)[row - int(first_rows[group])].as_py()
        except pa.ArrowException as error:
            raise OSError(str(error)) from error
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            raise KeyError(key)
        return value


class _OpenFile:
    def __init__(self, path: str) -> None:
        self.file = pq.ParquetFile(path, memory_map=True)
        metadata = self.file.metadata
        self.first_rows = np.cumsum([0] + [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])[:-1]


@lru_cache(maxsize=_FILES_KEPT)
def _open(path: str, process: int) -> _OpenFile:
    try:
        return _OpenFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as Parquet ({error})", "Copy or write it again") from error


@lru_cache(maxsize=_ROW_GROUPS_KEPT)
def _images(path: str, process: int, group: int) -> pa.ChunkedArray:
    file = _open(path, process).file
    return file.read_row_group(group, columns=[_column(file, _IMAGE_COLUMNS, Path(path))]).column(0)


def _column(file: pq.ParquetFile, names: tuple[str, ...], path: Path) -> str:
    present = file.schema_arrow.names
    for name in names:
        if name in present:
            return name
    raise UserError(
        f"{path} has none of the columns {', '.join(names)}, only {', '.join(present)}",
        "Give a Parquet file with the columns image (bytes) and label",
    )
