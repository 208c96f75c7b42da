"""Photos as they lie about: folders, single files and archives, found in one fixed order and read only when asked for.

Finding never opens a picture. Whatever is in the way (a dangling link, a loop of links, a folder that may not be
listed, a broken archive) comes out as a :class:`Refusal` in its place, so that nothing vanishes and nothing stops.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dptr.cache.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif")

#: No photo's file is larger; what claims to be is not read.
LARGEST_FILE = 1 << 29


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo that can be read.

    Attributes:
        file: the file it lies in, printable.
        member: its name inside an archive; empty for a file of its own.
        size: bytes of ``file``. With ``modified_ns`` it tells whether the file has changed since an earlier run.
        modified_ns: when ``file`` was last written.
        read: returns the encoded picture; raises what reading may raise.
    """

    file: str
    member: str
    size: int
    modified_ns: int
    read: Callable[[], bytes]

    @property
    def place(self) -> str:
        """Where the photo lies, in one string."""
        return f"{self.file}::{self.member}" if self.member else self.file


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that lies among the photos and cannot be used."""

    file: str
    member: str
    reason: str


def find_photos(paths: Sequence[Path]) -> Iterator[Photo | Refusal]:
    """Find all photos under ``paths``, in the order of ``paths`` and then of names.

    A folder is searched through all its folders and links for pictures and archives, by suffix; a file that is named
    itself is taken whatever it is called. No folder is searched twice.

    Raises:
        UserError: one of ``paths`` does not exist.
    """
    visited: set[tuple[int, int]] = set()
    for path in paths:
        if not os.path.lexists(path):
            raise UserError(f"{path} does not exist", "Name a folder, a picture or an archive of pictures")
        yield from _entry(path, visited, frozenset(), named=True)


def count_photos(paths: Sequence[Path]) -> int:
    """Count what :func:`find_photos` finds.

    Raises:
        UserError: there is not one photo.
    """
    refusals: list[Refusal] = []
    photos = 0
    for found in find_photos(paths):
        if isinstance(found, Photo):
            photos += 1
        elif not refusals:
            refusals.append(found)
    if not photos:
        why = f" ({refusals[0].file}: {refusals[0].reason})" if refusals else ""
        places = ", ".join(str(path) for path in paths) or "no path"
        raise UserError(f"no photo in {places}{why}", f"Photos end in {', '.join(IMAGE_SUFFIXES)}, or lie in archives")
    return photos


def printable(path: Path | str) -> str:
    """Return a path as valid Unicode: file names may be any bytes, Parquet strings may not."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _entry(
    path: Path, visited: set[tuple[int, int]], above: frozenset[tuple[int, int]], named: bool = False
) -> Iterator[Photo | Refusal]:
    from dptr.pipeline.photo_archives import find_in_archive

    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode) and not (path / "data.mdb").is_file():
            yield from _folder(path, (status.st_dev, status.st_ino), visited, above)
            return
        suffix = path.suffix.lower()
        in_archive = find_in_archive(path, status)
        if in_archive is not None:
            yield from in_archive
        elif not named and suffix not in IMAGE_SUFFIXES:
            return
        elif not stat.S_ISREG(status.st_mode):
            yield Refusal(printable(path), "", "not a regular file")
        elif status.st_size > LARGEST_FILE:
            yield Refusal(printable(path), "", f"file too large: {status.st_size} bytes")
        else:
            yield Photo(printable(path), "", status.st_size, status.st_mtime_ns, partial(path.read_bytes))
    except OSError as error:
        yield Refusal(printable(path), "", _why(path, error))


def _folder(
    folder: Path, identity: tuple[int, int], visited: set[tuple[int, int]], above: frozenset[tuple[int, int]]
) -> Iterator[Photo | Refusal]:
    if identity in above:
        yield Refusal(printable(folder), "", "link loop")
        return
    if identity in visited:
        return
    visited.add(identity)
    for name in sorted(os.listdir(folder), key=os.fsencode):
        yield from _entry(folder / name, visited, above | {identity})


def _why(path: Path, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "link loop"
    if error.errno == errno.ENOENT and path.is_symlink():
        return f"dangling link: to {printable(os.readlink(path))}"
    return f"cannot be read: {error.strerror or error}"
