"""Sealed files: each holds the SHA-256 of its own bytes, its own digits taken as zeros, so that no flip goes unseen.

What describes a store, a run or a model is sealed from format version 2 on. The seal stands where the format has room:
a last key in JSON, a comment in TOML, the header of safetensors, the metadata of ONNX and of Parquet files that belong
to a run. Files of version 1 have none.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from pathlib import Path
from typing import Any

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.plain_json import what_is_wrong
from dptr.cache.stores.files import atomic_path

#: Of manifests, runs and model files alike. A newer one is refused, older ones are read.
FORMAT_VERSION = 2
#: Of the manifests of prompt stores of several templates, which a dptr that knows of one alone must not read.
SEVERAL_TEMPLATES = 3
_NEWEST = SEVERAL_TEMPLATES
_FIRST_SEALED = 2

_MARK = b"dptr-sha256:"
_DIGITS = 64
#: Stands in a file for its seal until :func:`seal` puts the digits in.
UNSEALED = _MARK.decode() + "0" * _DIGITS
_SEAL = "seal"
_VERSION_KEY = "dptr_format_version"
#: What the header or the metadata of a model or a table holds.
METADATA = {_VERSION_KEY: str(FORMAT_VERSION), "dptr_seal": UNSEALED}
RESTORE = "Restore it from a copy, or make what it belongs to again"


def seal(path: Path) -> None:
    """Put the digits into a finished file that holds :data:`UNSEALED`; only the last one counts."""
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as data:
        place = _place(data)
        data[place : place + _DIGITS] = _digest(data, place)
        data.flush()


def is_sealed(path: Path) -> bool | None:
    """Return whether a file's seal is right; None where it has none."""
    if path.stat().st_size == 0:
        return None
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = _place(data)
        return None if place < 0 else data[place : place + _DIGITS] == _digest(data, place)


def require_sealed(path: Path, needed: bool = False) -> None:
    """Check a file's seal; one without passes unless it is ``needed``.

    Raises:
        DamagedStore: the file's bytes are not those that were sealed.
    """
    whole = is_sealed(path)
    if whole is False or (needed and whole is None):
        raise DamagedStore(f"{path} is damaged: its contents have changed", RESTORE)


def require_whole(path: Path) -> None:
    """Check the seal of a model or a table; one without :data:`METADATA` has none and passes.

    Raises:
        DamagedStore: the file's bytes are not those that were sealed. OSError: it cannot be read.
    """
    # Two marks: one flip cannot make a file look as if it never had a seal.
    require_sealed(path, needed=_VERSION_KEY.encode() in _ends_of(path))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object as indented, sealed JSON of this format version, atomically."""
    sealed = {"format_version": FORMAT_VERSION, **value, _SEAL: UNSEALED}
    write_text(path, json.dumps(sealed, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text that holds :data:`UNSEALED` as UTF-8, sealed and atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        seal(temporary)


def read_json(path: Path) -> dict[str, Any]:
    """Read an object that :func:`write_json` wrote, or one of format version 1, without its seal.

    Raises:
        DamagedStore: it is no JSON object, or its bytes have changed.
        UserError: it is of a newer format version.
        OSError: it cannot be read.
    """
    require_sealed(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        version = value.get("format_version", 1)
        if not isinstance(version, int) or version < 1:
            raise ValueError(f"format version {version!r}")
    except (ValueError, AttributeError, RecursionError) as error:
        raise DamagedStore(f"{path} is damaged: {what_is_wrong(error)}", RESTORE) from error
    if version > _NEWEST:
        raise UserError(f"{path} has format version {version}, this dptr reads {_NEWEST}", "Update dptr")
    require_sealed(path, needed=version >= _FIRST_SEALED)
    value.pop(_SEAL, None)
    return dict(value)


def _ends_of(path: Path, size: int = 1 << 16) -> bytes:
    """Return the first and the last bytes of a file, where its header and its metadata are."""
    with path.open("rb") as stream:
        first = stream.read(size)
        stream.seek(max(0, path.stat().st_size - size))
        return first + stream.read(size)


def _place(data: mmap.mmap) -> int:
    """Return where the digits of the last seal begin, -1 without one."""
    found = data.rfind(_MARK)
    return found + len(_MARK) if 0 <= found <= len(data) - len(_MARK) - _DIGITS else -1


def _digest(data: mmap.mmap, place: int) -> bytes:
    digest = hashlib.sha256()
    with memoryview(data) as view:
        digest.update(view[:place])
        digest.update(b"0" * _DIGITS)
        digest.update(view[place + _DIGITS :])
    return digest.hexdigest().encode()
