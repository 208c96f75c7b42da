"""Photos as given: folders, single files and archives, found in one fixed order.

Finding never opens a picture. Whatever is in the way (a dangling link, a loop of links, a folder that may not be
listed, a broken archive, a picture of a format that cannot be read here) is yielded as a rejection in its place.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from dptr.cache.errors import UserError
from dptr.cache.file_names import MANIFEST_FILE
from dptr.cache.pictures import IMAGE_SUFFIXES, LARGEST_FILE, read_encoded, unreadable_format
from dptr.cache.rejections import Rejection
from dptr.pipeline.photos.archives import archive_kind, photos_in_archive
from dptr.pipeline.photos.photo import Photo, printable

FIRST_SHARD = "part-00000.arrow"
_Folder = tuple[int, int]  # device and inode


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
        yield from _entry(path, visited, frozenset(), named=True)


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
        places = ", ".join(str(path) for path in paths) or "no path at all"
        why = f" ({first.source}: {first.reason})" if first else ""
        raise UserError(f"no photo in {places}{why}", f"Photos end in {', '.join(IMAGE_SUFFIXES)}, or lie in archives")
    return photos


def _entry(
    path: Path, visited: set[_Folder], above: frozenset[_Folder], named: bool = False
) -> Iterator[Photo | Rejection]:
    try:
        status = path.stat()
        if archive_kind(path):
            yield from photos_in_archive(path, status)
        elif stat.S_ISDIR(status.st_mode):
            yield from _folder(path, (status.st_dev, status.st_ino), visited, above)
        elif named or path.suffix.lower() in IMAGE_SUFFIXES:
            yield _file(path, status)
        elif why := unreadable_format(path.name):
            yield _rejected(path, why)
    except OSError as error:
        yield _rejected(path, _why(path, error))


def _folder(
    folder: Path, identity: _Folder, visited: set[_Folder], above: frozenset[_Folder]
) -> Iterator[Photo | Rejection]:
    if identity in above:
        yield _rejected(folder, "link loop")
    elif identity not in visited:
        visited.add(identity)
        if (folder / MANIFEST_FILE).is_file() and (folder / FIRST_SHARD).is_file():
            return  # one of our own stores: a bank's thumbnails are no photos, and it may be beside them
        for name in sorted(os.listdir(folder), key=os.fsencode):
            yield from _entry(folder / name, visited, above | {identity})


def _file(path: Path, status: os.stat_result) -> Photo | Rejection:
    if not stat.S_ISREG(status.st_mode):
        return _rejected(path, "not a regular file")
    if status.st_size > LARGEST_FILE:
        return _rejected(path, f"file too large: {status.st_size} bytes")
    return Photo(printable(path), "", status.st_size, status.st_mtime_ns, partial(read_encoded, path))


def _rejected(path: Path, reason: str) -> Rejection:
    return Rejection(printable(path), "", "", reason)


def _why(path: Path, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "link loop"
    if error.errno == errno.ENOENT and path.is_symlink():
        return f"dangling link: to {printable(os.readlink(path))}"
    return f"cannot be read: {error.strerror or error}"
