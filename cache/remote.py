"""Stores and labelled crops on object storage (``s3://``, ``gs://``, ``hf://``): fetched once, then read locally.

They are fetched into dptr's cache folder and stay there until the user removes them. A complete store is compared with
its manifest.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path, PurePosixPath
from threading import Event
from typing import TYPE_CHECKING, cast

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import MANIFEST_FILE
from dptr.cache.printing import without_credentials
from dptr.cache.progress import note, progress
from dptr.cache.stores.files import atomic_path, remove_leftovers

if TYPE_CHECKING:
    from pyarrow import fs

#: The environment variable with the folder of the cache.
FOLDER = "DPTR_CACHE"
_SCHEMES = ("s3:", "gs:", "hf:")
#: Marks a complete folder; holds the local path of the address.
_FETCHED = ".fetched"
_AT_ONCE = 8
_PIECE = 1 << 22


def at_hand(path: Path) -> Path:
    """Return the local path: the path itself, or the folder into which an address was fetched.

    Raises:
        UserError: an address cannot be read. DamagedStore: an object of a store differs from its manifest.
    """
    if not path.parts or path.parts[0] not in _SCHEMES:
        return path
    from filelock import FileLock

    address = f"{path.parts[0]}//{'/'.join(path.parts[1:])}"
    shown = without_credentials(address)
    place = cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16]
    fetched = place.with_suffix(_FETCHED)
    place.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place.with_suffix(".lock")):
            if fetched.is_file():
                note(f"{shown} is read from {place}; remove this folder and {fetched.name} to fetch it again")
            else:
                remove_leftovers(place)
                name = _fetch(address, shown, place)
                fetched.write_text(name, encoding="utf-8")
            return place / fetched.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        advice = "Check the address, the network and your credentials for it"
        raise UserError(f"{shown} cannot be read: {reason}", advice) from error


def _fetch(address: str, shown: str, place: Path) -> str:
    """Fetch what is missing in ``place``; return the file's name there, empty for a folder."""
    from pyarrow import fs

    files, top = _file_system(address)
    found = files.get_file_info(top)
    if found.type == fs.FileType.NotFound:
        raise UserError(f"there is no {shown}", "Check the address; write folders without a trailing slash")
    is_file = found.type == fs.FileType.File
    listed = [found] if is_file else files.get_file_info(fs.FileSelector(top, recursive=True))
    base = PurePosixPath(top).parent if is_file else PurePosixPath(top)
    objects = {str(PurePosixPath(one.path).relative_to(base)): one for one in listed if one.type == fs.FileType.File}
    for name in objects:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"the object {base}/{name} has `..` in its name", "Rename it, or remove it there")
    missing = [name for name, one in objects.items() if not _is_there(place / name, one.size)]
    with progress(f"fetching {shown}", len(missing), "files") as bar, ThreadPoolExecutor(_AT_ONCE) as threads:
        stopped = Event()
        try:
            for _ in threads.map(lambda name: _fetch_one(files, objects[name], place / name, stopped), missing):
                bar.advance()
        finally:
            stopped.set()
    if MANIFEST_FILE in objects:
        _require_whole(shown, place)
    return str(found.base_name) if is_file else ""


def _is_there(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _fetch_one(files: fs.FileSystem, one: fs.FileInfo, file: Path, stopped: Event) -> None:
    with atomic_path(file) as temporary, files.open_input_stream(one.path) as source, temporary.open("wb") as target:
        while not stopped.is_set() and (piece := source.read(_PIECE)):
            target.write(piece)
        if target.tell() != one.size:
            raise OSError(f"{file.name} ends before its {one.size:,} bytes")


def _require_whole(shown: str, place: Path) -> None:
    """Compare a store with its manifest; remove damaged files.

    Raises:
        DamagedStore: an object is missing or damaged.
    """
    from dptr.cache.stores.manifest import Manifest

    for name, record in Manifest.read(place).every_file().items():
        if problem := record.problem(place / name):
            (place / name).unlink(missing_ok=True)
            raise DamagedStore(f"{shown}/{name} {problem}", "Copy this file of the store there again")


def _file_system(address: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of an address, and the path in it."""
    from pyarrow import fs

    if not address.startswith("hf:"):
        return cast(tuple["fs.FileSystem", str], fs.FileSystem.from_uri(address))
    from huggingface_hub import HfFileSystem

    return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem())), address.removeprefix("hf://")


def cache_folder() -> Path:
    """Return dptr's cache folder: of fetched objects, and of lists of labelled crops."""
    if named := os.environ.get(FOLDER):
        return Path(named)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "dptr"
    home = home_folder()
    return _temporary_folder() if home is None else home / ".cache" / "dptr"


def home_folder() -> Path | None:
    """Return the user's home; None if there is none, as for a container's user without an entry."""
    try:
        return Path.home()
    except RuntimeError:
        return None


@cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dptr-cache-"))
    note(f"this user has no home folder: the cache is in {folder} (set {FOLDER} for another)")
    return folder
