"""What finding photos yields: a photo that can be read, or a refusal in its place."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Photo:
    """One photo that can be read.

    Attributes:
        file: the file it is in, printable.
        member: its name inside an archive; empty for a file of its own.
        size: bytes of ``file``. With ``modified_ns`` it shows whether the file has changed since an earlier run.
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
        """Where the photo is, in one string."""
        return f"{self.file}::{self.member}" if self.member else self.file


@dataclass(frozen=True, slots=True)
class Refusal:
    """A file or member among the photos that cannot be used."""

    file: str
    member: str
    reason: str


def printable(path: Path | str) -> str:
    """Return a path as valid Unicode: file names may be any bytes, Parquet strings may not."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
