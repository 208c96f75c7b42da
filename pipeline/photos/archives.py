"""Photos inside tar (WebDataset), zip, Parquet and LMDB: listed by name, read one by one.

An archive is listed without reading its pictures, so that photos can be counted, skipped and read by several workers.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

from dptr.cache.pictures import IMAGE_SUFFIXES, LARGEST_FILE
from dptr.pipeline.photos.photo import Photo, Refusal, printable

_Members = Iterator[tuple[str, Callable[[], bytes]]]
_LMDB_FILE = "data.mdb"
_row_group_lock = Lock()


def archive_kind(path: Path) -> str | None:
    """Return which kind of archive ``path`` is, told by its suffix and for LMDB by its file, or None."""
    if (path / _LMDB_FILE).is_file():
        return ".lmdb"
    suffix = path.suffix.lower()
    return suffix if suffix in _MEMBERS and path.is_file() else None


def photos_in_archive(path: Path, status: os.stat_result) -> Iterator[Photo | Refusal]:
    """List an archive's photos; a broken archive ends with a refusal."""
    file = printable(path)
    try:
        for name, read in _MEMBERS[archive_kind(path) or ""](path):
            yield Photo(file, name, status.st_size, status.st_mtime_ns, read)
    # Four libraries and what they raise on torn files; what was listed before the tear stays usable.
    except Exception as error:
        yield Refusal(file, "", f"broken archive: {error}")


def _tar(path: Path) -> _Members:
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            if member.isfile() and member.name.lower().endswith(IMAGE_SUFFIXES):
                yield printable(member.name), partial(_read_piece, path, member.offset_data, member.size)
        # tarfile takes damage between members for the end; the real end is a block of zeros.
        if _read_piece(path, archive.offset, tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"torn at byte {archive.offset}")


def _read_piece(path: Path, offset: int, size: int) -> bytes:
    if size > LARGEST_FILE:
        raise OSError(f"{size} bytes are too many for a photo")
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def _zip(path: Path) -> _Members:
    for info in _open_zip(path).infolist():
        if not info.is_dir() and info.filename.lower().endswith(IMAGE_SUFFIXES):
            yield printable(info.filename), partial(_read_zip_member, path, info)


def _read_zip_member(path: Path, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > LARGEST_FILE:
        raise OSError(f"{info.file_size} bytes are too many for a photo")
    return _open_zip(path).read(info)


@lru_cache(maxsize=8)
def _open_zip(path: Path) -> zipfile.ZipFile:
    # Opening reads the whole directory of the archive, so it stays open; reading from several threads is safe.
    return zipfile.ZipFile(path)


def _parquet(path: Path) -> _Members:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        column = _image_column(file.schema_arrow)
        row = 0
        for group in range(file.num_row_groups):
            for index in range(file.metadata.row_group(group).num_rows):
                row += 1
                yield f"row {row}", partial(_read_cell, path, group, column, index)


def _image_column(schema: Any) -> str:
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    columns = [field.name for field in schema if holds_bytes(field.type)]
    for name in ("image", "jpg", "jpeg", "png", "webp", "img", "bytes", "image_bytes"):
        if name in columns:
            return name
    if len(columns) != 1:
        raise ValueError(f"no column `image` with bytes among {', '.join(schema.names)}")
    return str(columns[0])


def _read_cell(path: Path, group: int, column: str, index: int) -> bytes:
    with _row_group_lock:
        cells = _row_group(path, group, column)
    value = cells[index].as_py()
    value = value["bytes"] if isinstance(value, dict) else value
    if value is None:
        raise OSError("the cell is empty")
    return bytes(value)


@lru_cache(maxsize=2)
def _row_group(path: Path, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column]).column(0)


def _lmdb(path: Path) -> _Members:
    with _open_lmdb(path).begin() as transaction:
        for key in transaction.cursor().iternext(values=False):
            # The names of the field's word LMDBs, whose labels are no pictures.
            if key != b"num-samples" and not key.startswith(b"label-"):
                yield key.decode("utf-8", "backslashreplace"), partial(_read_lmdb_value, path, bytes(key))


def _read_lmdb_value(path: Path, key: bytes) -> bytes:
    with _open_lmdb(path).begin() as transaction:
        return bytes(transaction.get(key))


@lru_cache(maxsize=8)
def _open_lmdb(path: Path) -> Any:
    import lmdb

    return lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, max_readers=512)


_MEMBERS: dict[str, Callable[[Path], _Members]] = {
    ".tar": _tar,
    ".zip": _zip,
    ".parquet": _parquet,
    ".lmdb": _lmdb,
    ".mdb": _lmdb,
}
