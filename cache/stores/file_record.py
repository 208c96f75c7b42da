"""A manifest's record of a file: size and hashes, by which damage to it is found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from dptr.cache.stores.files import sha256_of, xxh3_of


@dataclass(frozen=True)
class FileRecord:
    """Size and hashes of a committed file; stores of format version 1 have no fast hash."""

    bytes: int
    sha256: str
    xxh3: str = ""

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Measure a finished file."""
        return cls(path.stat().st_size, sha256_of(path), xxh3_of(path))

    def problem(self, path: Path, fast: bool = False) -> str | None:
        """Return what is wrong with the file at ``path``, None when it is as it was committed.

        Args:
            path: the file. fast: compare the fast hash where it is known, which finds damage, not forgery.
        """
        try:
            size = path.stat().st_size
            if size != self.bytes:
                return f"has {size} bytes, not {self.bytes}"
            same = xxh3_of(path) == self.xxh3 if fast and self.xxh3 else sha256_of(path) == self.sha256
            return None if same else "is damaged: its contents have changed"
        except FileNotFoundError:
            return "is missing"
        except OSError as error:
            return f"cannot be read: {error.strerror}"


def file_records(stored: dict[str, dict[str, Any]]) -> dict[str, FileRecord]:
    """Return the records of files that JSON holds, by name.

    Raises:
        TypeError, AttributeError: it holds something else. ValueError: a name leads out of the store's folder.
    """
    for name in stored:
        if name != PurePath(name).name or name in ("", ".", ".."):
            raise ValueError(f"{name!r} is no name of a file in a store")
    records = {name: FileRecord(**record) for name, record in stored.items()}
    for record in records.values():
        if type(record.bytes) is not int or not isinstance(record.sha256, str) or not isinstance(record.xxh3, str):
            raise TypeError(f"{record} is none")
        if not 0 <= record.bytes < 1 << 63:
            raise ValueError("a file has a size that none can have")
        if not (record.sha256 + record.xxh3).isascii():
            raise ValueError(f"{record} holds no digests")
    return records


def begun_anew(path: Path) -> str:
    """Say what the loss of a file that records earlier runs means."""
    return (
        f"{path} is damaged or missing and begun anew: what this run reads is judged again, "
        "what only earlier runs read is no longer known"
    )
