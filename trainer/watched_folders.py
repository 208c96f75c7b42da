"""Folders that are watched: a picture that comes into one is read once it has stopped growing, and once only."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from dptr.cache import plain_json
from dptr.cache.errors import UserError
from dptr.trainer.read import Reader, pictures_in
from dptr.trainer.read_files import Row, found_in, picture

_SECONDS_BETWEEN_LOOKS = 1.0
#: Time of the last change, in nanoseconds, and size: the same at two looks, a file is taken for whole.
Stamp = tuple[int, int]


def require_watchable(names: Sequence[str], out: Path | None) -> None:
    """Check that names are folders, and that readings go where lines can be added.

    Raises:
        UserError: a name is no folder, there is none, or ``out`` is no file of JSON lines.
    """
    for name in names or ["no folder"]:
        if not Path(name).is_dir():
            raise UserError(f"{name} is not a folder", "Name folders to watch")
    if out is not None and out.suffix.lower() != ".jsonl":
        raise UserError(f"{out} cannot grow line by line", "End it in .jsonl")


def watched_rows(
    reader: Reader,
    folders: Sequence[Path],
    batch_size: int | None,
    read_before: Collection[str],
    tell: Callable[[UserError], None],
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[Row]:
    """Yield a row for each picture that is or comes into folders, without an end.

    Args:
        reader: reads. folders: with those in them. batch_size: pictures read at once.
        read_before: names of pictures to pass over.
        tell: is called with what keeps a picture from being read.
        pause: waits between two looks, seconds.
    """
    for paths in new_pictures(folders, read_before, pause):
        for described, found in found_in(reader, map(picture, paths), batch_size):
            if isinstance(found, UserError):
                tell(found)
            else:
                yield {**described, **vars(found)}


def new_pictures(
    folders: Sequence[Path], read_before: Collection[str], pause: Callable[[float], None]
) -> Iterator[list[Path]]:
    """Yield, at every look, the pictures that are new or changed since they were yielded, and whole by now."""
    before: dict[str, Stamp] = {}
    taken: dict[str, Stamp] = {}
    while True:
        now = dict(_stamps(folders))
        taken |= {name: stamp for name, stamp in now.items() if name in read_before and name not in before}
        ready = [name for name, stamp in now.items() if before.get(name) == stamp != taken.get(name)]
        # What has left the folders is forgotten, so that memory does not grow with what passes through them.
        taken = {name: now[name] if name in ready else stamp for name, stamp in taken.items() if name in now}
        taken |= {name: now[name] for name in ready}
        before = now
        yield [Path(name) for name in ready]
        pause(_SECONDS_BETWEEN_LOOKS)


def _stamps(folders: Iterable[Path]) -> Iterator[tuple[str, Stamp]]:
    for folder in folders:
        for path in pictures_in(folder):
            try:
                known = os.stat(path)
            except FileNotFoundError:  # taken away since it was listed
                continue
            yield str(path), (known.st_mtime_ns, known.st_size)


def images_of(out: Path) -> set[str]:
    """Return the pictures whose readings stand in a file of JSON lines; half a line at its end is cut off."""
    if not out.is_file():
        return set()
    names = set()
    whole = 0
    with out.open("r+b") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            names.add(_image(line, out))
        stream.truncate(whole)
    return names


def _image(line: bytes, out: Path) -> str:
    try:
        return str(json.loads(line)["image"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out} holds something else than readings", "Name another file with -o") from error


def append_rows(out: Path, rows: Iterable[Row]) -> None:
    """Add rows to a file of JSON lines, each at once."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8", errors="backslashreplace") as stream:
        for row in rows:
            stream.write(plain_json.dumps(row) + "\n")
            stream.flush()
