"""Parquet with encoded images and their labels, as dptr packs them and as Hugging Face's datasets store them.

Read and written. Reading one image decodes its row group, so LMDB is the better form for training in random order.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dptr.cache.crops.form import MISSING, FileState, Form, NotLabelled, Rejected, state_of
from dptr.cache.errors import UserError
from dptr.cache.stores.files import atomic_path

#: Columns that may hold encoded images, the most specific first.
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "bytes", "image_bytes")
_LABEL_COLUMNS = ("label", "text", "txt")
_ADVICE = "Give a Parquet file with the columns image (bytes) and label"
_FILES_KEPT = 64
_ROW_GROUPS_KEPT = 8
# A reader decodes whole row groups: small ones make random access affordable.
_ROWS_A_GROUP = 64

#: The columns of a Parquet file of word images: an encoded image and its label.
SCHEMA = pa.schema([("image", pa.binary()), ("label", pa.string())])


@dataclass(frozen=True)
class ParquetSource:
    """One file with a column of images (bytes, or a struct of bytes and path) and one of labels."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> ParquetSource:
        """Return the file at ``path``; :class:`NotLabelled` where it lacks a column of images or one of labels."""
        schema = _open(state_of(path)).file.schema_arrow
        try:
            image_column(schema), _label_column(schema)
        except ValueError as error:
            raise NotLabelled(f"{path} has {error}", _ADVICE) from error
        return cls(path)

    @property
    def name(self) -> str:
        """See :meth:`dptr.cache.crops.form.Source.name`."""
        return str(self.path)

    def labels(self) -> Iterator[tuple[str, str | Rejected]]:
        """See :meth:`dptr.cache.crops.form.Source.labels`; the key is the row's number."""
        file = _open(state_of(self.path)).file
        row = 0
        try:
            for batch in file.iter_batches(columns=[_label_column(file.schema_arrow)]):
                for label in batch.column(0).to_pylist():
                    yield str(row), label if isinstance(label, str) else MISSING
                    row += 1
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _damaged(self.path, error) from error

    def read(self, key: str) -> bytes:
        """See :meth:`dptr.cache.crops.form.Source.read`."""
        row = int(key)
        state = state_of(self.path)
        first_rows = _open(state).first_rows
        group = int(np.searchsorted(first_rows, row, side="right")) - 1
        try:
            value = _images(state, group)[row - int(first_rows[group])].as_py()
        except (ValueError, IndexError, pa.ArrowException) as error:
            # IndexError: a row group states more rows than it has.
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
def _open(state: FileState) -> _OpenFile:
    path, *_ = state
    try:
        return _OpenFile(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        # ValueError: names of columns that are no UTF-8.
        raise _damaged(path, error) from error


@lru_cache(maxsize=_ROW_GROUPS_KEPT)
def _images(state: FileState, group: int) -> pa.ChunkedArray:
    file = _open(state).file
    return file.read_row_group(group, columns=[image_column(file.schema_arrow)]).column(0)


def _close_inherited() -> None:
    _open.cache_clear()
    _images.cache_clear()


# A forked worker shares the position in its parent's open files.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def image_column(schema: pa.Schema) -> str:
    """Return the column with encoded images: one of :data:`IMAGE_COLUMNS`, or the only one that holds bytes.

    Raises:
        ValueError: there is none.
    """
    columns = [field.name for field in schema if _holds_bytes(field.type)]
    for name in IMAGE_COLUMNS:
        if name in columns:
            return name
    if len(columns) != 1:
        raise ValueError(f"no column `image` with bytes among {', '.join(schema.names)}")
    return str(columns[0])


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _label_column(schema: pa.Schema) -> str:
    for name in _LABEL_COLUMNS:
        if name in schema.names and _holds_text(schema.field(name).type):
            return name
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise ValueError(f"none of the columns {', '.join(_LABEL_COLUMNS)} with text, only {columns}")


def _damaged(path: Path | str, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read as Parquet ({' '.join(str(error).split())})", "Copy or write it again")


class ParquetWriter:
    """Writes labelled images into an open file, a row group at a time."""

    def __init__(self, file: pq.ParquetWriter) -> None:
        self._file = file
        self._rows: list[dict[str, object]] = []

    def write(self, image: bytes, label: str) -> None:
        """Add one image, encoded, and its label."""
        self._rows.append({"image": image, "label": label})
        if len(self._rows) == _ROWS_A_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write the pending rows."""
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
            self._rows.clear()


@contextmanager
def write(out: Path) -> Iterator[ParquetWriter]:
    """Open a new file for labelled images; it appears at ``out`` when it is whole."""
    with atomic_path(out) as path, pq.ParquetWriter(path, SCHEMA, compression="zstd") as file:
        writer = ParquetWriter(file)
        yield writer
        writer.flush()


FORM = Form("Parquet with image and label", ("*.parquet",), ParquetSource.open)
