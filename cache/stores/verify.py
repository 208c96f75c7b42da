"""Finds damage in a store: every committed file is read and compared with the hash in the manifest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dptr.cache.errors import UserError
from dptr.cache.file_names import (
    INDEX_FILE,
    MANIFEST_FILE,
    NEIGHBOURS_ARRAY,
    NEIGHBOURS_TABLE,
    PHOTOS_FILE,
    QUARANTINE_FILE,
)
from dptr.cache.progress import progress
from dptr.cache.stores.files import sha256_of


@dataclass(frozen=True)
class Damage:
    """One file that is not what was committed.

    Attributes:
        folder: the store.
        file: the file's name in it.
        shard: the shard it belongs to, or None for the manifest and store-wide files.
        problem: what is wrong.
    """

    folder: Path
    file: str
    shard: str | None
    problem: str

    @property
    def advice(self) -> str:
        """What to do about it."""
        return _MENDED_BY.get(self.file, _ADVICE)


_ADVICE = "Move the store away and make it again, or restore the named files from a copy"
_MENDED_BY = {
    INDEX_FILE: "`dptr mine-neighbours` and `dptr build-orp-bank` build it again",
    NEIGHBOURS_TABLE: "`dptr mine-neighbours` searches them again",
    NEIGHBOURS_ARRAY: "`dptr mine-neighbours` searches them again",
    PHOTOS_FILE: "`dptr build-orp-bank` with the same photos writes it again",
    QUARANTINE_FILE: "The command that made the store writes it again",
}


def verify(folder: Path) -> list[Damage]:
    """Check every committed file of a store of any kind; an empty list means that all are as written.

    Raises:
        UserError: ``folder`` is no store.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise UserError(f"{folder} is no store (it has no {MANIFEST_FILE})", "Name a store's folder")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        listed = [(name, None, record) for name, record in manifest["files"].items()]
        for shard in manifest["shards"]:
            listed += [(name, shard["name"], record) for name, record in shard["files"].items()]
        total = sum(record["bytes"] for _, _, record in listed)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [Damage(folder, MANIFEST_FILE, None, f"cannot be read: {error}")]
    found: list[Damage] = []
    with progress(f"checking {folder}", total, "bytes") as bar:
        for name, shard_name, record in listed:
            problem = _problem(folder / name, record)
            if problem:
                found.append(Damage(folder, name, shard_name, problem))
            bar.advance(record["bytes"])
    return found


def _problem(path: Path, record: dict[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != record["bytes"]:
            return f"has {size} bytes, not {record['bytes']}"
        return None if sha256_of(path) == record["sha256"] else "its contents have changed"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
