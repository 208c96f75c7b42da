"""Checksummed files: each holds the SHA-256 of its own bytes, computed with zeros for its digits.

Descriptions of stores, runs and models are checksummed: in the last key of JSON, a comment of TOML, the header of
safetensors, the metadata of ONNX and of a run's Parquet files.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from pathlib import Path
from typing import Any

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.stores.files import atomic_path

#: Of manifests, runs and model files; other versions are rejected.
FORMAT_VERSION = 2

_MARK = b"dptr-sha256:"
_DIGITS = 64
#: Placeholder in a file until :func:`checksum` replaces its digits.
WITHOUT_CHECKSUM = _MARK.decode() + "0" * _DIGITS
_CHECKSUM = "checksum"
_VERSION_KEY = "dptr_format_version"
#: Content of the header or the metadata of a model or a table.
METADATA = {_VERSION_KEY: str(FORMAT_VERSION), "dptr_checksum": WITHOUT_CHECKSUM}
RESTORE = "Restore it from a copy, or make its store or run again"


def checksum(path: Path) -> None:
    """Write the checksum into a finished file that holds :data:`WITHOUT_CHECKSUM`; only the last occurrence counts."""
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as data:
        place = _place(data)
        data[place : place + _DIGITS] = _digest(data, place)
        data.flush()


def has_checksum(path: Path) -> bool | None:
    """Return whether a file's checksum is right; None where it has none."""
    with path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            return None
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            place = _place(data)
            return None if place < 0 else data[place : place + _DIGITS] == _digest(data, place)


def require_checksum(path: Path, needed: bool = True) -> None:
    """Raise :class:`DamagedStore` if a file's checksum is wrong, or missing although ``needed``."""
    whole = has_checksum(path)
    if whole is False or (needed and whole is None):
        raise DamagedStore(f"{path} is damaged: its contents have changed", RESTORE)


def require_whole(path: Path) -> None:
    """Check the checksum of a model or a table; files without :data:`METADATA` have none and pass."""
    # Two markers: one flipped bit cannot make a file look like one without a checksum.
    require_checksum(path, needed=_VERSION_KEY.encode() in _ends_of(path))


def write_json(path: Path, value: dict[str, Any], lists: dict[str, list[Any]] | None = None) -> None:
    """Write an object as indented, checksummed JSON of this format version, atomically.

    ``lists`` come last, one entry a line, which takes a tenth of the time for long ones.
    """
    text = json.dumps({"format_version": FORMAT_VERSION, **value}, indent=2, ensure_ascii=False).removesuffix("\n}")
    for name, entries in (lists or {}).items():
        lines = ",\n    ".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
        text += f',\n  "{name}": [\n    {lines}\n  ]'
    write_text(path, f'{text},\n  "{_CHECKSUM}": "{WITHOUT_CHECKSUM}"\n}}\n')


def write_text(path: Path, text: str) -> None:
    """Write a text that holds :data:`WITHOUT_CHECKSUM` as UTF-8, checksummed and atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        checksum(temporary)


def read_json(path: Path) -> dict[str, Any]:
    """Read an object that :func:`write_json` wrote, without its checksum.

    Raises:
        DamagedStore: its bytes have changed. UserError: another format version. OSError: it cannot be read.
    """
    require_checksum(path)
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    version = value.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format version {version}, this dptr reads {FORMAT_VERSION}", "Update dptr")
    del value[_CHECKSUM]
    return value


def _ends_of(path: Path, size: int = 1 << 16) -> bytes:
    """Return the first and the last bytes of a file, where its header and its metadata are."""
    with path.open("rb") as stream:
        first = stream.read(size)
        stream.seek(max(0, path.stat().st_size - size))
        return first + stream.read(size)


def _place(data: mmap.mmap) -> int:
    """Return where the digits of the last checksum begin, -1 without one."""
    found = data.rfind(_MARK)
    return found + len(_MARK) if 0 <= found <= len(data) - len(_MARK) - _DIGITS else -1


def _digest(data: mmap.mmap, place: int) -> bytes:
    digest = hashlib.sha256()
    with memoryview(data) as view:
        digest.update(view[:place])
        digest.update(b"0" * _DIGITS)
        digest.update(view[place + _DIGITS :])
    return digest.hexdigest().encode()
