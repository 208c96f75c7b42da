"""What every form of labelled word images offers: samples with their labels, and an image on demand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from dptr.cache.errors import UserError


class NotLabelled(UserError):
    """What lies there is something else than labelled word images; damaged ones are a plain :class:`UserError`."""


class Rejected(NamedTuple):
    """In place of a label: why a sample cannot be used; rejected samples are counted by the reason."""

    reason: str


MISSING = Rejected("label or image is missing")


#: Path, size in bytes, time of the last change (ns) and inode: what tells a file from one that replaced it.
FileState = tuple[str, int, int, int]


def state_of(path: Path | str) -> FileState:
    """Return the state of the file at ``path``.

    Raises:
        OSError: it is not there.
    """
    known = os.stat(path)
    return str(path), known.st_size, known.st_mtime_ns, known.st_ino


class Source(Protocol):
    """One data set of labelled images. It is picklable and opens its files where it is used."""

    @property
    def name(self) -> str:
        """Where it is, for people: the path of the file that its labels are in, or of its folder."""

    def labels(self) -> Iterator[tuple[str, str | Rejected]]:
        """Yield key and raw label of each sample in order.

        Raises:
            UserError: the data set is damaged; what is wrong with single samples is a :class:`Rejected`.
        """

    def read(self, key: str) -> bytes:
        """Return one encoded image.

        Raises:
            OSError, KeyError, ValueError, UnusablePicture: it is not there or cannot be read.
        """


class Form(NamedTuple):
    """A form of labelled word images: how it is called, the names of its files, and how one is opened."""

    description: str
    patterns: tuple[str, ...]
    open: Callable[[Path], Source]
