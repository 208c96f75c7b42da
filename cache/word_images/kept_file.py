"""Blocks of rows: in memory while they are few, else in a sealed file that is kept beside what it was made from.

Such a file holds nothing that cannot be made again. What it was made from stands in it; one that does not fit, or
cannot be read, counts as none.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.ipc as ipc

from dptr.cache.errors import UserError
from dptr.cache.progress import note
from dptr.cache.remote import cache_folder
from dptr.cache.stores import checks, sealed
from dptr.cache.stores.files import TEMPORARY_SUFFIX, atomic_path, scratch_folder
from dptr.cache.stores.lock import locked_file
from dptr.cache.stores.mapped_file import MappedFile

#: Rows of a block, as a power of two: a row's block is found by a shift. What fits into one is kept in memory.
BLOCK_BITS = 16
_MADE_FROM, _SUMMARY = b"made_from", b"summary"
MADE_AGAIN = "remove it, and it is made again"


@dataclass
class BlocksInMemory:
    """At most one block, which goes to other processes as it is."""

    blocks: list[pa.RecordBatch]
    path: Path = Path("memory")

    def release(self) -> None:
        """Do nothing: there is no mapped page."""


class KeptFile:
    """A mapped file of blocks; it goes to other processes by its path.

    Attributes:
        blocks: all but the last of ``1 << BLOCK_BITS`` rows. made_from: digest of what it was made from.
        summary: what else was found out then.
    """

    #: A folder that goes when nobody needs it any more, where the file could be kept nowhere.
    kept_in: tempfile.TemporaryDirectory[str] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map = MappedFile(path)
        reader = ipc.open_file(self._map.buffer)
        self.made_from = (reader.schema.metadata or {})[_MADE_FROM].decode()
        *self.blocks, _ = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for block in self.blocks:
            block.validate()
        told = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1).custom_metadata
        self.summary: dict[str, Any] = json.loads(told[_SUMMARY])

    @classmethod
    def find(cls, places: Sequence[Path], made_from: str) -> Self | None:
        """Return the first file at ``places`` that was made from this; its seal is checked in the background."""
        for path in places:
            try:
                found = cls(path)
            except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
                continue
            if found.made_from == made_from:
                checks.soon(path, _Seal())
                return found
        return None

    def release(self) -> None:
        """Drop mapped pages from this process; they are read again when touched."""
        self._map.release()

    def __reduce__(self) -> tuple[Any, tuple[Path, str]]:
        return _open_again, (self.path, self.made_from)


def _open_again(path: Path, made_from: str) -> KeptFile:
    found = KeptFile.find([path], made_from)
    if found is None:
        raise UserError(f"{path} was changed while it was in use", "Start again")
    return found


Blocks = BlocksInMemory | KeptFile


def places_beside(path: Path, name: str) -> list[Path]:
    """Return where a file about ``path`` may be kept: beside it or in it, else in this machine's cache."""
    digest = hashlib.sha256(f"{path.name if path.is_file() else ''}\n{name}".encode()).hexdigest()[:16]
    folder = path.parent if path.is_file() else path
    elsewhere = hashlib.sha256(f"{path.absolute()}\n{name}".encode()).hexdigest()[:16]
    return [folder / f".dptr-{digest}.listing", cache_folder() / "listings" / f"{elsewhere}.listing"]


@dataclass
class BlocksInMaking:
    """Takes blocks; from the second on they go to a file, at the first of ``places`` that can be written.

    ``made`` are the blocks, once all are written.
    """

    places: Sequence[Path]
    made_from: str
    summary: dict[str, Any] = field(default_factory=dict)
    made: Blocks = field(default_factory=lambda: BlocksInMemory([]))
    _stack: ExitStack = field(default_factory=ExitStack)
    _file: _FileInMaking | None = None

    def add(self, block: pa.RecordBatch) -> None:
        """Take the next block; only the last may have fewer than ``1 << BLOCK_BITS`` rows."""
        if self._file is None and isinstance(self.made, BlocksInMemory) and not self.made.blocks:
            self.made.blocks.append(block)
            return
        if self._file is None:
            self._file = _FileInMaking(self.places, block.schema, self.made_from, self._stack)
            for waiting in self.made.blocks:
                self._file.write(waiting)
        self._file.write(block)


@contextmanager
def blocks_in_making(places: Sequence[Path], made_from: str) -> Iterator[BlocksInMaking]:
    """Let a block add blocks and set the summary; behind it, ``made`` holds them.

    Raises:
        OSError: no place has room for them.
    """
    making = BlocksInMaking(places, made_from)
    with making._stack:
        yield making
        if making._file is not None:
            making._file.finish(making.summary)
    if making._file is not None:
        making.made = making._file.opened()


class _FileInMaking:
    def __init__(self, places: Sequence[Path], schema: pa.Schema, made_from: str, stack: ExitStack) -> None:
        held = stack.enter_context(_held(places))
        self._scratch = scratch_folder() if held is None else None
        self._path = Path(self._scratch.name) / "listing" if self._scratch else held or Path()
        self._temporary = stack.enter_context(atomic_path(self._path))
        self._sink = stack.enter_context(pa.OSFile(str(self._temporary), "wb"))
        self._schema = schema.with_metadata({_MADE_FROM.decode(): made_from, **sealed.METADATA})
        self._writer = ipc.new_file(self._sink, self._schema)
        if held is not None:
            note(f"labels are listed once and kept in {held}")

    def write(self, block: pa.RecordBatch) -> None:
        self._writer.write_batch(block)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write a last block without rows, which holds the summary, and the seal."""
        empty = pa.RecordBatch.from_arrays([pa.array([], column.type) for column in self._schema], schema=self._schema)
        self._writer.write_batch(empty, custom_metadata={_SUMMARY: json.dumps(summary).encode()})
        self._writer.close()
        self._sink.close()
        sealed.seal(self._temporary)

    def opened(self) -> KeptFile:
        file = KeptFile(self._path)
        file.kept_in = self._scratch
        return file


@contextmanager
def _held(places: Sequence[Path]) -> Iterator[Path | None]:
    """Hold the first of ``places`` that can be written and that no other process writes; None: there is none."""
    for place in places:
        with ExitStack() as stack:
            try:
                stack.enter_context(locked_file(place))
            except (UserError, OSError):
                continue
            for left in place.parent.glob(f".{place.name}.*{TEMPORARY_SUFFIX}"):
                left.unlink(missing_ok=True)
            yield place
            return
    yield None


class _Seal:
    """Checks a kept file as a manifest's record checks a store's."""

    def problem(self, path: Path, fast: bool = False) -> str | None:
        """Return what is wrong with the file at ``path``, None when it is as it was written."""
        try:
            return None if sealed.is_sealed(path) else f"is damaged: {MADE_AGAIN}"
        except OSError as error:
            return f"cannot be read: {error.strerror}"
