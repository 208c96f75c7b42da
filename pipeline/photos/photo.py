"""A photo that can be read: what finding photos yields, or a :class:`~dptr.cache.rejections.Rejection`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


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
        """Where the photo is, in one string."""
        return f"{self.source}::{self.key}" if self.key else self.source


def printable(path: Path | str) -> str:
    """Return a path as valid Unicode: file names may be any bytes, Parquet strings may not."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
