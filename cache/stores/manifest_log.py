"""Shards committed since a manifest was written, a line each: to commit one costs the same behind a thousand others.

The first line names the manifest, by its hash; a log of another manifest counts for nothing, since whoever writes a
manifest has taken the log's shards over. Each line begins with the SHA-256 of the rest. A last line without an end is
one that a kill tore: its shard was not committed.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from dptr.cache.errors import DamagedStore
from dptr.cache.file_names import MANIFEST_LOG
from dptr.cache.plain_json import what_is_wrong
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.shard_record import Shard

_BASE = "manifest"


def append(folder: Path, base: str, shard: Shard) -> None:
    """Commit a shard behind the manifest whose SHA-256 is ``base``; the caller is the store's only writer."""
    path = folder / MANIFEST_LOG
    if not path.is_file():
        with atomic_path(path) as temporary:
            temporary.write_bytes(_line({_BASE: base}) + _line(shard.stored()))
        return
    with path.open("ab") as stream:
        stream.write(_line(shard.stored()))
        stream.flush()
        os.fsync(stream.fileno())


def read(folder: Path, base: str) -> list[Shard]:
    """Return the shards that were committed behind the manifest whose SHA-256 is ``base``.

    Raises:
        DamagedStore: a line is not what was written.
    """
    path = folder / MANIFEST_LOG
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    told = [_told(path, number, line) for number, line in enumerate(lines, 1)]
    try:
        return [Shard.of(value) for value in told[1:]] if told and told[0].get(_BASE) == base else []
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedStore(f"{path} is damaged: {what_is_wrong(error)}", _ADVICE) from error


def remove(folder: Path) -> None:
    """Remove the log, whose shards a manifest has taken over."""
    (folder / MANIFEST_LOG).unlink(missing_ok=True)


_ADVICE = "Remove it: the command that made the store computes the shards again that it lists"


def _line(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest().encode() + b" " + text + b"\n"


def _told(path: Path, number: int, line: bytes) -> dict[str, Any]:
    digest, _, text = line.partition(b" ")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise DamagedStore(f"{path} is damaged: line {number} has changed", _ADVICE)
    try:
        value = json.loads(text)
        return dict(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise DamagedStore(f"{path} is damaged: {what_is_wrong(error)}", _ADVICE) from error
