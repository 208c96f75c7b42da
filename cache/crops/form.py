"""Interface of a form of labelled word images: samples with labels, and images on demand."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from dptr.cache.errors import UserError


class NotLabelled(UserError):
    """The path holds no labelled word images; damaged ones raise a plain :class:`UserError`."""


class Rejected(NamedTuple):
    """Replaces the label of an unusable sample; rejected samples are counted by reason."""

    reason: str


MISSING = Rejected("label or image is missing")


#: Path, size in bytes, modification time (ns) and inode: they change when a file is replaced.
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
        """Path of the file with the labels, or of its folder, for messages."""

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
    """A form of labelled word images: its description, file-name patterns, and function that opens a source."""

    description: str
    patterns: tuple[str, ...]
    open: Callable[[Path], Source]
