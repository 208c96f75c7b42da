"""Photos as given: folders, single files and archives (tar, zip, Parquet, LMDB), found in one fixed order.

Finding opens no picture, so that photos can be counted, skipped and read by several workers. Problems (a dangling link,
a folder without permission, a broken archive, an unsupported format) are yielded as rejections in order.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow.parquet as pq

from dptr.cache.crops import lmdb_form, parquet_form, tar_form
from dptr.cache.crops.form import FileState, state_of
from dptr.cache.errors import UserError
from dptr.cache.file_names import MANIFEST_FILE
from dptr.cache.pictures import IMAGE_SUFFIXES, LARGEST_FILE, read_encoded, unreadable_format
from dptr.cache.rejections import Rejection

FIRST_SHARD = "part-00000.arrow"
_Folder = tuple[int, int]  # device and inode


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo that can be read.

    Attributes:
        source: the file it is in, printable.
        key: its name inside an archive; empty for a file of its own.
        size: bytes of ``source``. With ``modified_ns`` it shows whether the file has changed since an earlier run.
        modified_ns: when ``source`` was last written.
        read: returns the encoded picture; raises what reading may raise.
    """

    source: str
    key: str
    size: int
    modified_ns: int
    read: Callable[[], bytes]

    @property
    def place(self) -> str:
        """The photo's location in one string."""
        return f"{self.source}::{self.key}" if self.key else self.source


def printable(path: Path | str) -> str:
    """Return a path as valid Unicode: file names may be any bytes, Parquet strings may not."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def find_photos(paths: Sequence[Path]) -> Iterator[Photo | Rejection]:
    """Find all photos under ``paths``, in the order of ``paths`` and then of names.

    A folder is searched through all its folders and links for pictures and archives, by suffix; a file that is named
    itself is taken whatever it is called. No folder is searched twice.

    Raises:
        UserError: one of ``paths`` does not exist.
    """
    visited: set[_Folder] = set()
    for path in paths:
        if not os.path.lexists(path):
            raise UserError(f"{path} does not exist", "Name a folder, a picture or an archive of pictures")
        yield from _entry(path, visited, named=True)


def count_photos(paths: Sequence[Path]) -> int:
    """Count the photos that :func:`find_photos` finds.

    Raises:
        UserError: there is not one photo.
    """
    photos = 0
    first: Rejection | None = None
    for found in find_photos(paths):
        if isinstance(found, Photo):
            photos += 1
        else:
            first = first or found
    if not photos:
        places = ", ".join(str(path) for path in paths) or "no path"
        why = f" ({first.source}: {first.reason})" if first else ""
        raise UserError(f"no photo in {places}{why}", f"Photos end in {', '.join(IMAGE_SUFFIXES)}, or lie in archives")
    return photos


def _entry(path: Path, visited: set[_Folder], named: bool = False) -> Iterator[Photo | Rejection]:
    try:
        status = path.stat()
        if archive_kind(path):
            yield from photos_in_archive(path, status)
        elif stat.S_ISDIR(status.st_mode):
            yield from _folder(path, (status.st_dev, status.st_ino), visited)
        elif named or path.suffix.lower() in IMAGE_SUFFIXES:
            yield _file(path, status)
        elif why := unreadable_format(path.name):
            yield _rejected(path, why)
    except OSError as error:
        yield _rejected(path, f"cannot be read: {error.strerror or error}")


def _folder(folder: Path, identity: _Folder, visited: set[_Folder]) -> Iterator[Photo | Rejection]:
    if identity not in visited:
        visited.add(identity)
        if (folder / MANIFEST_FILE).is_file() and (folder / FIRST_SHARD).is_file():
            return  # one of our own stores: a bank's thumbnails are no photos, and it may be beside them
        for name in sorted(os.listdir(folder), key=os.fsencode):
            yield from _entry(folder / name, visited)


def _file(path: Path, status: os.stat_result) -> Photo | Rejection:
    if not stat.S_ISREG(status.st_mode):
        return _rejected(path, "not a regular file")
    if status.st_size > LARGEST_FILE:
        return _rejected(path, f"file too large: {status.st_size} bytes")
    return Photo(printable(path), "", status.st_size, status.st_mtime_ns, partial(read_encoded, path))


def _rejected(path: Path, reason: str) -> Rejection:
    return Rejection(printable(path), "", "", reason)


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
    # Exceptions of four libraries on truncated files; photos listed before the damage stay usable.
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
