"""Labelled word images as dptr writes them: a folder with ``labels.tsv``, LMDB with the field's keys, or Parquet.

Rendering and packing both end here. Whatever the form, it is whole or absent: the labels, or the name, come last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq

from dptr.cache.errors import UserError
from dptr.cache.stores.files import atomic_path, flush, temporary_beside
from dptr.cache.stores.lock import locked, locked_file

#: The columns of a Parquet file of word images: an encoded image and its label.
SCHEMA = pa.schema([("image", pa.binary()), ("label", pa.string())])

_FIRST_MAP_BYTES = 64 << 20
_ROWS_A_TRANSACTION = 512
# A row group is the least that a reader can decode: small ones make reading in random order bearable.
_ROWS_A_GROUP = 64


class WordImageWriter(Protocol):
    """Takes labelled images in order."""

    def write(self, image: bytes, label: str) -> None:
        """Add one image, encoded as JPEG or PNG, and its label."""


@contextmanager
def write_word_images(out: Path) -> Iterator[WordImageWriter]:
    """Open ``out`` for labelled images; its name tells the form: ``.lmdb``, ``.parquet``, anything else is a folder.

    Raises:
        UserError: ``out`` holds labelled images already, or another process writes it.
    """
    hold = locked_file if out.suffix in (".lmdb", ".parquet") else locked
    with hold(out), _write(out) as writer:
        yield writer


@contextmanager
def _write(out: Path) -> Iterator[WordImageWriter]:
    finished = out if out.suffix in (".lmdb", ".parquet") else out / "labels.tsv"
    if finished.exists():
        raise UserError(f"{finished} is there already", "Name another place, or remove it first")
    if out.suffix == ".lmdb":
        with _write_lmdb(out) as lmdb_writer:
            yield lmdb_writer
    elif out.suffix == ".parquet":
        with atomic_path(out) as path, pq.ParquetWriter(path, SCHEMA, compression="zstd") as file:
            parquet_writer = _ParquetWriter(file)
            yield parquet_writer
            parquet_writer.flush()
    else:
        (out / "images").mkdir(parents=True, exist_ok=True)
        with atomic_path(finished) as path, path.open("w", encoding="utf-8", newline="\n") as labels:
            yield _FolderWriter(out, labels)


class _FolderWriter:
    def __init__(self, folder: Path, labels: IO[str]) -> None:
        self._folder = folder
        self._labels = labels
        self._count = 0

    def write(self, image: bytes, label: str) -> None:
        if set(label) & {"\t", "\n", "\r"}:
            raise UserError(f"label {label!r} has a tab or a line break, which labels.tsv cannot hold", "Write LMDB")
        self._count += 1
        suffix = "png" if image.startswith(b"\x89PNG") else "jpg"
        name = f"images/{self._count:09d}.{suffix}"
        (self._folder / name).write_bytes(image)
        self._labels.write(f"{name}\t{label}\n")


class _ParquetWriter:
    def __init__(self, file: pq.ParquetWriter) -> None:
        self._file = file
        self._rows: list[dict[str, object]] = []

    def write(self, image: bytes, label: str) -> None:
        self._rows.append({"image": image, "label": label})
        if len(self._rows) == _ROWS_A_GROUP:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, SCHEMA))
            self._rows.clear()


class _LmdbWriter:
    def __init__(self, environment: lmdb.Environment) -> None:
        self._environment = environment
        self._pending: list[tuple[bytes, bytes]] = []
        self._count = 0

    def write(self, image: bytes, label: str) -> None:
        self._count += 1
        self._pending.append((b"image-%09d" % self._count, image))
        self._pending.append((b"label-%09d" % self._count, label.encode("utf-8")))
        if len(self._pending) >= 2 * _ROWS_A_TRANSACTION:
            self.flush()

    def finish(self) -> None:
        self._pending.append((b"num-samples", b"%d" % self._count))
        self.flush()

    def flush(self) -> None:
        while self._pending:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in self._pending:
                        transaction.put(key, value)
                self._pending.clear()
            except lmdb.MapFullError:
                # A huge map from the start would be a huge file on systems without sparse files.
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])


@contextmanager
def _write_lmdb(out: Path) -> Iterator[_LmdbWriter]:
    temporary = temporary_beside(out)
    try:
        with lmdb.open(str(temporary), map_size=_FIRST_MAP_BYTES) as environment:
            writer = _LmdbWriter(environment)
            yield writer
            writer.finish()
            environment.sync(True)
        os.replace(temporary, out)
        flush(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
