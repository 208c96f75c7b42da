"""Stores and labelled crops on object storage (``s3://``, ``gs://``, ``hf://``): fetched once, then read as any other.

They are fetched into a cache of this machine, which holds at most so much (``DPTR_CACHE_GB``); what was used longest
ago makes room. The files of a store are compared with the hashes in its manifest as they come, others with their sizes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, cast

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import MANIFEST_FILE
from dptr.cache.progress import note, progress
from dptr.cache.stores.files import atomic_path, write_json

if TYPE_CHECKING:
    from pyarrow import fs

#: The folder of the cache, and how much it may hold.
FOLDER, GIGABYTES = "DPTR_CACHE", "DPTR_CACHE_GB"
_SCHEMES = ("s3:", "gs:", "hf:")
_DEFAULT_GIGABYTES = 100.0
_FETCHED = ".fetched.json"
_AT_ONCE = 8
_PIECE = 1 << 22

#: Of each file what tells whether it has changed: its size, and when it was written (nanoseconds).
_Known = dict[str, list[int]]


def at_hand(path: Path) -> Path:
    """Return where a path's files are on this machine: the path itself, or where an address was fetched to.

    Raises:
        UserError: an address cannot be read, or holds more than the cache may. DamagedStore: a file of a store there
            is not what its manifest lists; the object is named.
    """
    if not path.parts or path.parts[0] not in _SCHEMES:
        return path
    from filelock import FileLock

    address = f"{path.parts[0]}//{'/'.join(path.parts[1:])}"
    root = cache_folder()
    place = root / hashlib.sha256(address.encode()).hexdigest()[:16]
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"), _failures_told(address):
        return _fetch(address, place)


def _fetch(address: str, place: Path) -> Path:
    from pyarrow import fs

    files, top = _file_system(address)
    found = files.get_file_info(top)
    if found.type == fs.FileType.NotFound:
        raise UserError(f"there is no {address}", "Check the address; a folder ends with no slash")
    is_file = found.type == fs.FileType.File
    listed = [found] if is_file else files.get_file_info(fs.FileSelector(top, recursive=True))
    base = str(PurePosixPath(top).parent) if is_file else top
    objects = {str(PurePosixPath(one.path).relative_to(base)): one for one in listed if one.type == fs.FileType.File}
    now: _Known = {name: [one.size, one.mtime_ns or 0] for name, one in objects.items() if name != _FETCHED}
    for name in now:
        if not _stays_inside(name):
            raise UserError(f"the object {base}/{name} has `..` in its name", "Rename it, or remove it there")
    _make_room(place, sum(size for size, _ in now.values()))
    before = _known(place)
    for name in before.keys() - now.keys():
        (place / name).unlink(missing_ok=True)
    missing = [name for name in now if now[name] != before.get(name) or not (place / name).is_file()]
    kept = {name: known for name, known in before.items() if name in now and name not in missing}
    if missing:
        place.mkdir(exist_ok=True)
        write_json(place / _FETCHED, kept)
        with progress(f"fetching {address}", len(missing), "files") as shown, ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(partial(_fetch_one, files, base, place), missing):
                shown.advance()
        if MANIFEST_FILE in now:
            _require_whole(address, place, missing, list(now))
        write_json(place / _FETCHED, now)
    os.utime(place / _FETCHED)
    return place / found.base_name if is_file else place


def _fetch_one(files: fs.FileSystem, base: str, place: Path, name: str) -> None:
    with (
        atomic_path(place / name) as temporary,
        files.open_input_stream(f"{base}/{name}") as source,
        temporary.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, _PIECE)


def _require_whole(address: str, place: Path, fetched: list[str], there: list[str]) -> None:
    """Compare what came of a store with its manifest; what is not whole is not kept.

    Raises:
        DamagedStore: an object is missing or damaged.
    """
    from dptr.cache.stores.manifest import Manifest

    manifest = Manifest.read(place)
    records = manifest.files | {name: record for shard in manifest.shards for name, record in shard.files.items()}
    for name, record in records.items():
        if name not in there:
            raise DamagedStore(f"{address}/{name} is missing", "Copy the store there again")
        problem = record.problem(place / name, fast=True) if name in fetched else None
        if problem:
            (place / name).unlink(missing_ok=True)
            raise DamagedStore(f"{address}/{name} {problem}", "Copy this file of the store there again")


def _make_room(place: Path, size: int) -> None:
    """Remove what was used longest ago until ``size`` bytes fit into the cache at ``place``."""
    most = float(os.environ.get(GIGABYTES, _DEFAULT_GIGABYTES)) * 1e9
    if size > most:
        raise UserError(
            f"it holds {size / 1e9:,.1f} GB, and the cache in {place.parent} may hold {most / 1e9:,.1f}",
            f"Allow more ({GIGABYTES}=...), in a folder that has room ({FOLDER}=...)",
        )
    others = [one.parent for one in place.parent.glob(f"*/{_FETCHED}") if one.parent != place]
    others.sort(key=lambda one: (one / _FETCHED).stat().st_mtime_ns)
    held = {one: sum(bytes_ for bytes_, _ in _known(one).values()) for one in others}
    while others and size + sum(held[one] for one in others) > most:
        shutil.rmtree(others.pop(0), ignore_errors=True)


def _known(place: Path) -> _Known:
    """Return what was fetched to a place; where the record of it is damaged, nothing of it is kept."""
    try:
        known = json.loads((place / _FETCHED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        known = None
    if _is_record(known):
        return cast(_Known, known)
    note(f"{place / _FETCHED} is damaged: what is in this folder will be fetched again")
    shutil.rmtree(place)
    return {}


def _is_record(known: object) -> bool:
    return isinstance(known, dict) and all(
        _stays_inside(name)
        and isinstance(values, list)
        and len(values) == 2
        and all(isinstance(value, int) for value in values)
        for name, values in known.items()
    )


def _stays_inside(name: str) -> bool:
    """Tell whether a name below a folder leads to no place outside of it."""
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def cache_folder() -> Path:
    """Return the folder of this machine's cache; without a home, as in some containers, one of temporary files."""
    named = os.environ.get(FOLDER)
    if named:
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache if os.path.isabs(cache) else Path(tempfile.gettempdir()) / f"cache-{os.getuid()}") / "dptr"


def _file_system(address: str) -> tuple[fs.FileSystem, str]:
    """Return what reads an address, and the path in it."""
    from pyarrow import fs

    if address.startswith("hf://"):
        from huggingface_hub import HfFileSystem

        return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem())), address.removeprefix("hf://")
    files, top = fs.FileSystem.from_uri(address)
    return files, top


@contextmanager
def _failures_told(address: str) -> Iterator[None]:
    try:
        yield
    except (UserError, DamagedStore):
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{address} cannot be read: {reason}", "Check the address, the network and your credentials for it"
        ) from error
