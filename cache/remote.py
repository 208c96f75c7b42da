"""Stores and labelled crops on object storage (``s3://``, ``gs://``, ``hf://``): fetched once, then read as any other.

They are fetched into dptr's cache folder and stay there until they are removed. An object that has changed there, or a
file that has changed here, is fetched again. Files of a store are compared with its manifest as they come.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import cache, partial
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import parse_qsl, unquote

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import MANIFEST_FILE
from dptr.cache.progress import note, progress
from dptr.cache.stores.files import atomic_path, remove_leftovers, write_json

if TYPE_CHECKING:
    from pyarrow import fs

#: The environment variable with the folder of the cache.
FOLDER = "DPTR_CACHE"
_SCHEMES = ("s3:", "gs:", "hf:")
_FETCHED = ".fetched.json"
_AT_ONCE = 8
_PIECE = 1 << 22
#: Seconds for a connection, without a byte of an answer, and without anything from any of several requests.
_CONNECTING, _ANSWERING, _SILENT = 5.0, 5.0, 60.0
#: Seconds between looks at whether a signal has come, which may reach another thread.
_LOOKING = 0.2

#: Of each file: the object's size and time (ns), and the time (ns) of the file here.
_Known = dict[str, list[int]]
_Result = TypeVar("_Result")


def at_hand(path: Path) -> Path:
    """Return where a path's files are on this machine: the path itself, or where an address was fetched to.

    Raises:
        UserError: an address cannot be read. DamagedStore: a file of a store there is not what its manifest lists; the
            object is named.
    """
    if not path.parts or path.parts[0] not in _SCHEMES:
        return path
    from filelock import FileLock

    address = f"{path.parts[0]}//{'/'.join(path.parts[1:])}"
    place = cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    scheme, _, rest = address.rpartition("@")
    shown = f"{scheme.partition('//')[0]}//{rest}" if scheme else address
    try:
        with FileLock(place.with_suffix(".lock")):
            return _fetch(address, shown, place)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        advice = "Check the address, the network and your credentials for it"
        raise UserError(f"{shown} cannot be read: {reason}", advice) from error


def _fetch(address: str, shown: str, place: Path) -> Path:
    (listing,) = _in_threads(lambda _, alive: _list(address, shown), [address], shown)
    files, base, name, now = listing
    remove_leftovers(place)
    before = _known(place)
    for gone in before.keys() - now.keys():
        (place / gone).unlink(missing_ok=True)
    unchanged = {one for one, known in before.items() if known[:2] == now.get(one) and _is_whole(place / one, known)}
    missing = [one for one in now if one not in unchanged]
    if missing:
        known = {one: before[one] for one in unchanged}
        write_json(place / _FETCHED, known)
        fetch = partial(_fetch_one, files, base, place, now)
        with progress(f"fetching {shown}", len(missing), "files") as bar:
            for _ in _in_threads(fetch, missing, shown):
                bar.advance()
        if MANIFEST_FILE in now:
            _require_whole(shown, place, missing, list(now))
        known |= {one: [*now[one], (place / one).stat().st_mtime_ns] for one in missing}
        write_json(place / _FETCHED, known)
    return place / name


def _list(address: str, shown: str) -> tuple[fs.FileSystem, str, str, _Known]:
    """Return what reads an address, its folder, what of it is asked for, and size and time (ns) of each object."""
    from pyarrow import fs

    files, top = _file_system(address)
    found = files.get_file_info(top)
    if found.type == fs.FileType.NotFound:
        raise UserError(f"there is no {shown}", "Check the address; write folders without a trailing slash")
    is_file = found.type == fs.FileType.File
    listed = [found] if is_file else files.get_file_info(fs.FileSelector(top, recursive=True))
    base = str(PurePosixPath(top).parent) if is_file else top
    objects = {str(PurePosixPath(one.path).relative_to(base)): one for one in listed if one.type == fs.FileType.File}
    for name in objects:
        if not _stays_inside(name):
            raise UserError(f"the object {base}/{name} has `..` in its name", "Rename it, or remove it there")
    now = {name: [one.size, one.mtime_ns or 0] for name, one in objects.items() if name != _FETCHED}
    return files, base, found.base_name if is_file else "", now


def _fetch_one(files: fs.FileSystem, base: str, place: Path, now: _Known, name: str, alive: Callable[[], None]) -> None:
    size, done, piece = now[name][0], 0, bytearray(_PIECE)
    with (
        atomic_path(place / name) as temporary,
        files.open_input_file(f"{base}/{name}") as source,
        temporary.open("wb") as target,
    ):
        while done < size:
            part = memoryview(piece)[: min(_PIECE, size - done)]
            # Where an answer is too short, Arrow returns what was in memory for the rest: see whether it fills it.
            for mark in (0x5A, 0xA5, 0x3C):
                part[-1] = mark
                source.seek(done)
                if source.readinto(part) == len(part) and part[-1] != mark:
                    break
            else:
                raise OSError(f"{name} ends before its {size:,} bytes")
            target.write(part)
            done += len(part)
            alive()


def _in_threads(
    work: Callable[[str, Callable[[], None]], _Result], names: Sequence[str], shown: str
) -> Iterator[_Result]:
    """Yield what ``work`` returns for each name and a function that it calls as bytes arrive, as they are finished.

    Signals are handled meanwhile: nothing here joins a thread that waits for the network.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    events: queue.SimpleQueue[tuple[Any, BaseException | None] | None] = queue.SimpleQueue()

    def take_turns() -> None:
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                events.put((work(name, lambda: events.put(None)), None))
            except BaseException as error:
                events.put((None, error))

    for name in names:
        waiting.put(name)
    for _ in range(min(_AT_ONCE, len(names))):
        Thread(target=take_turns, daemon=True).start()
    left, heard = len(names), time.monotonic()
    try:
        while left:
            if time.monotonic() > heard + _SILENT:
                raise UserError(f"{shown} does not answer", "Check the network, then run the same command")
            try:
                event = events.get(timeout=_LOOKING)
            except queue.Empty:
                continue
            heard = time.monotonic()
            if event is not None:
                result, error = event
                if error is not None:
                    raise error
                left -= 1
                yield result
    finally:
        while not waiting.empty():
            waiting.get()


def _require_whole(shown: str, place: Path, fetched: list[str], there: list[str]) -> None:
    """Compare what came of a store with its manifest; what is not whole is not kept.

    Raises:
        DamagedStore: an object is missing or damaged.
    """
    from dptr.cache.stores.manifest import Manifest

    manifest = Manifest.read(place)
    records = manifest.files | {name: record for shard in manifest.shards for name, record in shard.files.items()}
    for name, record in records.items():
        if name not in there:
            raise DamagedStore(f"{shown}/{name} is missing", "Copy the store there again")
        problem = record.problem(place / name, fast=True) if name in fetched else None
        if problem:
            (place / name).unlink(missing_ok=True)
            raise DamagedStore(f"{shown}/{name} {problem}", "Copy this file of the store there again")


def _is_whole(file: Path, known: list[int]) -> bool:
    """Return whether a file is there, and neither cut nor written to since it was fetched."""
    size, _, written = known
    try:
        state = file.stat()
    except OSError:
        return False
    return (state.st_size, state.st_mtime_ns) == (size, written)


def _known(place: Path) -> _Known:
    """Return what was fetched to a place; where the record of it is damaged, all of it is fetched again."""
    try:
        known = json.loads((place / _FETCHED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        known = None
    if isinstance(known, dict) and all(map(_is_record, known.items())):
        return cast(_Known, known)
    note(f"{place / _FETCHED} is damaged: its folder is fetched again")
    return {}


def _is_record(item: tuple[str, Any]) -> bool:
    name, values = item
    return (
        _stays_inside(name)
        and isinstance(values, list)
        and len(values) == 3
        and all(isinstance(value, int) for value in values)
    )


def _stays_inside(name: str) -> bool:
    """Return whether a name below a folder leads to no place outside of it."""
    return not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


def _file_system(address: str) -> tuple[fs.FileSystem, str]:
    """Return what reads an address, and the path in it; neither waits for an answer without a limit."""
    from pyarrow import fs

    scheme, _, rest = address.partition("://")
    if scheme == "hf":
        from huggingface_hub import HfFileSystem

        return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem())), rest
    rest, _, query = rest.partition("?")
    user, _, top = rest.rpartition("@")
    options = dict(parse_qsl(query))
    if unknown := options.keys() - {"region", "scheme", "endpoint_override"}:
        raise ValueError(f"its option {min(unknown)} is unknown")
    if scheme == "gs":
        limit = timedelta(seconds=_ANSWERING)
        return fs.GcsFileSystem(anonymous=user == "anonymous", retry_time_limit=limit, **options), top
    key, _, secret = user.partition(":")
    if key:
        options |= {"access_key": unquote(key), "secret_key": unquote(secret)}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint and "endpoint_override" not in options:
        protocol, _, options["endpoint_override"] = endpoint.rpartition("://")
        options.setdefault("scheme", protocol or "https")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region and not options.keys() & {"region", "endpoint_override"}:
        options["region"] = fs.resolve_s3_region(PurePosixPath(top).parts[0])
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=2)
    limits: dict[str, Any] = {"connect_timeout": _CONNECTING, "request_timeout": _ANSWERING, "retry_strategy": retries}
    return fs.S3FileSystem(**limits, **options), top


def cache_folder() -> Path:
    """Return dptr's cache folder: of fetched objects, and of lists of labelled crops."""
    if named := os.environ.get(FOLDER):
        return Path(named)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "dptr"
    home = home_folder()
    return _temporary_folder() if home is None else home / ".cache" / "dptr"


def home_folder() -> Path | None:
    """Return the user's home; None where there is none: a container may run as a user that it does not list."""
    try:
        return Path.home()
    except RuntimeError:
        return None


@cache
def _temporary_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"dptr-cache-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Another user may have made it, to have their files taken for the cache's.
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        folder = Path(tempfile.mkdtemp(prefix="dptr-cache-"))
    note(f"this user has no home folder: the cache is in {folder} (set {FOLDER} for another)")
    return folder
