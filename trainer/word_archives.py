"""Labelled word images in one file each: LMDB with the field's keys, Parquet, WebDataset tar.

A source holds no open file, so that it can be pickled to a worker. What is opened is kept per process, because an LMDB
environment must not cross a fork and must not be opened twice.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq

from dptr.cache.errors import UserError

_IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp")
_LABEL_SUFFIXES = ("txt", "label", "json")
_ROW_GROUPS_KEPT = 4


@dataclass(frozen=True)
class LmdbSource:
    """LMDB with ``num-samples``, ``image-%09d`` and ``label-%09d``, counted from 1."""

    path: Path

    @property
    def name(self) -> str:
        """The environment's path."""
        return str(self.path)

    def labels(self) -> Iterator[tuple[str, str | None]]:
        """Yield key and label of each sample that ``num-samples`` promises; None where image or label is missing.

        Raises:
            UserError: there is no number of samples.
        """
        with _environment(str(self.path), os.getpid()).begin() as transaction:
            try:
                count = int(transaction.get(b"num-samples"))
            except (TypeError, ValueError):
                raise UserError(f"{self.path} has no num-samples", "Write it again with `dptr pack-crops`") from None
            cursor = transaction.cursor()
            for index in range(1, count + 1):
                key = f"image-{index:09d}"
                label = transaction.get(b"label-%09d" % index)
                # Moving the cursor finds the key without touching the image's pages.
                present = label is not None and cursor.set_key(key.encode())
                yield key, label.decode("utf-8", "replace") if present else None

    def read(self, key: str) -> bytes:
        """Return one encoded image."""
        with _environment(str(self.path), os.getpid()).begin() as transaction:
            value = transaction.get(key.encode())
        if value is None:
            raise KeyError(key)
        return bytes(value)


@dataclass(frozen=True)
class ParquetSource:
    """Parquet with encoded images (bytes, or Hugging Face's struct of bytes and path) and their labels.

    Reading one image decodes its row group, so that LMDB is the better form for training in random order.
    """

    path: Path

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.path)

    def labels(self) -> Iterator[tuple[str, str | None]]:
        """Yield row number and label of each row.

        Raises:
            UserError: it lacks a column of images or one of labels.
        """
        file = _parquet(str(self.path), os.getpid())
        column = _column(file, ("label", "text"), self.path)
        _column(file, ("image", "jpg", "png"), self.path)
        row = 0
        for batch in file.iter_batches(columns=[column]):
            for label in batch.column(0).to_pylist():
                yield str(row), label if isinstance(label, str) else None
                row += 1

    def read(self, key: str) -> bytes:
        """Return one encoded image."""
        file = _parquet(str(self.path), os.getpid())
        group, row = 0, int(key)
        while row >= file.metadata.row_group(group).num_rows:
            row -= file.metadata.row_group(group).num_rows
            group += 1
        value = _images(str(self.path), os.getpid(), group)[row].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes):
            raise KeyError(key)
        return value


@dataclass(frozen=True)
class TarSource:
    """An uncompressed WebDataset shard: the members of one stem, ``.jpg`` and ``.txt`` or alike, are a sample.

    Listing the members once gives each image's place, from which it is read directly.
    """

    path: Path
    _place: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.path)

    def labels(self) -> Iterator[tuple[str, str | None]]:
        """Yield stem and label of each sample; None where its label is missing or its image is.

        Raises:
            UserError: it is no plain tar file.
        """
        labels: dict[str, str | None] = {}
        try:
            with tarfile.open(self.path, "r:") as archive:
                for member in archive:
                    folder, slash, name = member.name.rpartition("/")
                    base, _, suffix = name.lower().partition(".")
                    stem = folder + slash + name[: len(base)]
                    if suffix in _IMAGE_SUFFIXES:
                        self._place[stem] = (member.offset_data, member.size)
                        labels.setdefault(stem, None)
                    elif suffix in _LABEL_SUFFIXES and (content := archive.extractfile(member)):
                        labels[stem] = _tar_label(content.read(), suffix)
        except tarfile.TarError as error:
            raise UserError(f"{self.path} cannot be read ({error})", "Give an uncompressed WebDataset .tar") from error
        for stem, label in labels.items():
            yield stem, label if stem in self._place else None

    def read(self, key: str) -> bytes:
        """Return one encoded image."""
        offset, size = self._place[key]
        with self.path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)


def _tar_label(content: bytes, suffix: str) -> str | None:
    if suffix != "json":
        return content.decode("utf-8", "replace").rstrip("\r\n")
    try:
        value = json.loads(content)
    except ValueError:
        return None
    label = value.get("label", value.get("text")) if isinstance(value, dict) else None
    return label if isinstance(label, str) else None


def _column(file: pq.ParquetFile, names: tuple[str, ...], path: Path) -> str:
    for name in names:
        if name in file.schema_arrow.names:
            return name
    raise UserError(
        f"{path} has none of the columns {', '.join(names)}, only {', '.join(file.schema_arrow.names)}",
        "Give a Parquet file with the columns image (bytes) and label",
    )


@cache
def _environment(path: str, process: int) -> Any:
    try:
        return lmdb.open(path, subdir=os.path.isdir(path), readonly=True, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise UserError(f"{path} cannot be read as LMDB ({error})", "Copy or write it again") from error


@lru_cache(maxsize=64)
def _parquet(path: str, process: int) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as Parquet ({error})", "Copy or write it again") from error


@lru_cache(maxsize=_ROW_GROUPS_KEPT)
def _images(path: str, process: int, group: int) -> pa.ChunkedArray:
    file = _parquet(path, process)
    return file.read_row_group(group, columns=[_column(file, ("image", "jpg", "png"), Path(path))]).column(0)
