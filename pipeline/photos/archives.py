"""Photos inside tar (WebDataset), zip, Parquet and LMDB: listed by name, read one by one.

An archive is listed without reading its pictures, so that photos can be counted, skipped and read by several workers.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

from dptr.cache.crops import lmdb_form, parquet_form, tar_form
from dptr.cache.crops.form import FileState, state_of
from dptr.cache.pictures import IMAGE_SUFFIXES, LARGEST_FILE, unreadable_format
from dptr.cache.rejections import Rejection
from dptr.pipeline.photos.photo import Photo, printable

#: Names of members, each with what reads it or why it cannot be read.
_Members = Iterator[tuple[str, Callable[[], bytes] | str]]
_row_group_lock = Lock()


def archive_kind(path: Path) -> str | None:
    """Return which kind of archive ``path`` is, by its suffix and for LMDB by its file, or None."""
    if (path / lmdb_form.DATA_FILE).is_file():
        return ".lmdb"
    suffix = path.suffix.lower()
    return suffix if suffix in _MEMBERS and path.is_file() else None


def photos_in_archive(path: Path, status: os.stat_result) -> Iterator[Photo | Rejection]:
    """List an archive's photos; a broken archive ends with a rejection."""
    file = printable(path)
    try:
        for name, read in _MEMBERS[archive_kind(path) or ""](path):
            if isinstance(read, str):
                yield Rejection(file, name, "", read)
            else:
                yield Photo(file, name, status.st_size, status.st_mtime_ns, read)
    # Four libraries and what they raise on torn files; what was listed before the tear stays usable.
    except Exception as error:
        yield Rejection(file, "", "", f"broken archive: {error}")


def _tar(path: Path) -> _Members:
    for member in tar_form.members(path):
        if member.isfile() and member.name.lower().endswith(IMAGE_SUFFIXES):
            yield printable(member.name), partial(tar_form.read_piece, path, member.offset_data, member.size)
        elif why := unreadable_format(member.name):
            yield printable(member.name), why


def _zip(path: Path) -> _Members:
    for info in _open_zip(state_of(path)).infolist():
        if not info.is_dir() and info.filename.lower().endswith(IMAGE_SUFFIXES):
            yield printable(info.filename), partial(_read_zip_member, path, info)
        elif why := unreadable_format(info.filename):
            yield printable(info.filename), why


def _read_zip_member(path: Path, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > LARGEST_FILE:
        raise OSError(f"{info.file_size} bytes are too many for a photo")
    return _open_zip(state_of(path)).read(info)


@lru_cache(maxsize=8)
def _open_zip(state: FileState) -> zipfile.ZipFile:
    # Opening reads the whole directory of the archive, so it stays open; reading from several threads is safe.
    return zipfile.ZipFile(state[0])


def _parquet(path: Path) -> _Members:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        column = parquet_form.image_column(file.schema_arrow)
        row = 0
        for group in range(file.num_row_groups):
            for index in range(file.metadata.row_group(group).num_rows):
                row += 1
                yield f"row {row}", partial(_read_cell, path, group, column, index)


def _read_cell(path: Path, group: int, column: str, index: int) -> bytes:
    with _row_group_lock:
        cells = _row_group(state_of(path), group, column)
    value = cells[index].as_py()
    value = value["bytes"] if isinstance(value, dict) else value
    if value is None:
        raise OSError("the cell is empty")
    return bytes(value)


@lru_cache(maxsize=2)
def _row_group(state: FileState, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(state[0]) as file:
        return file.read_row_group(group, columns=[column]).column(0)


def _lmdb(path: Path) -> _Members:
    for key in lmdb_form.picture_keys(path):
        yield key.decode("utf-8", "backslashreplace"), partial(lmdb_form.read_value, path, key)


_MEMBERS: dict[str, Callable[[Path], _Members]] = {
    ".tar": _tar,
    ".zip": _zip,
    ".parquet": _parquet,
    ".lmdb": _lmdb,
    ".mdb": _lmdb,
}
