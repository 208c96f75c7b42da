"""LMDB with the field's keys: ``num-samples``, ``image-%09d`` and ``label-%09d``, counted from 1; read and written.

Sources hold no open environment, so that they can be pickled. Open environments are global to the process, because a
process may not open one twice nor use its parent's after a fork.
"""

from __future__ import annotations

import heapq
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import lmdb

from dptr.cache.crops.form import MISSING, FileState, Form, NotLabelled, Rejected, state_of
from dptr.cache.errors import UserError
from dptr.cache.stores.files import flush, temporary_beside

#: The file that makes a folder an LMDB.
DATA_FILE = "data.mdb"
#: LMDB's lock file.
LOCK_FILE = "lock.mdb"

_COUNT = b"num-samples"
_IMAGES, _LABELS = b"image-", b"label-"
_ADVICE = "Write it with the keys num-samples, image-%09d and label-%09d, or with `dptr pack-crops`"
_FIRST_MAP_BYTES = 64 << 20
_ROWS_A_TRANSACTION = 512


@dataclass(frozen=True)
class LmdbSource:
    """One environment: a folder with ``data.mdb``, or that file alone."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> LmdbSource:
        """Return the environment in the file ``path``; :class:`NotLabelled` where it has no key of a label."""
        found = cls(path.parent if path.name == DATA_FILE else path)
        try:
            with _environment(found.path).begin() as transaction:
                if next(_numbers(transaction, _LABELS), None) is None:
                    first = next(transaction.cursor().iternext(values=False), b"none")
                    example = first[:40].decode("utf-8", "backslashreplace")
                    raise NotLabelled(f"{found.path} has no keys label-%09d; its first is {example!r}", _ADVICE)
        except lmdb.Error as error:
            raise _damaged(found.path, str(error)) from error
        return found

    @property
    def name(self) -> str:
        """See :meth:`dptr.cache.crops.form.Source.name`."""
        return str(self.path)

    def labels(self) -> Iterator[tuple[str, str | Rejected]]:
        """Yield key and label of each sample; see :func:`stored_labels`."""
        for number, label in stored_labels(self.path, with_image=True):
            yield f"image-{number:09d}", MISSING if label is None else label.decode("utf-8", "replace")

    def read(self, key: str) -> bytes:
        """See :meth:`dptr.cache.crops.form.Source.read`."""
        return read_value(self.path, key.encode())


FORM = Form("LMDB (num-samples, image-%09d, label-%09d)", ("*.lmdb", "*.mdb"), LmdbSource.open)


def stored_labels(path: Path, with_image: bool = False) -> Iterator[tuple[int, bytes | None]]:
    """Yield number and label of each existing sample, counted from 0 or 1; `num-samples` may be too small.

    None where the label, or ``with_image`` its image, is missing, also of samples that only ``num-samples`` counts.

    Raises:
        UserError: the environment is damaged, or ``num-samples`` is impossible.
    """
    prefixes = (_IMAGES, _LABELS) if with_image else (_LABELS,)
    environment = _environment(path)
    try:
        with environment.begin() as transaction:
            last = _sample_count(path, transaction.get(_COUNT), environment.stat()["entries"])
            following = 1
            # Moving a cursor over keys does not touch the images' pages.
            numbers = heapq.merge(*(_numbers(transaction, prefix) for prefix in prefixes))
            for number, found in groupby(numbers):
                last -= number == 0
                yield from ((missing, None) for missing in range(following, min(number, last + 1)))
                whole = len(list(found)) == len(prefixes)
                yield number, transaction.get(b"%s%09d" % (_LABELS, number)) if whole else None
                following = number + 1
            yield from ((missing, None) for missing in range(following, last + 1))
    except lmdb.Error as error:
        raise _damaged(path, str(error)) from error


def _numbers(transaction: Any, prefix: bytes) -> Iterator[int]:
    """Yield the numbers of all keys that are ``prefix`` and nine digits, in order."""
    cursor = transaction.cursor()
    if cursor.set_range(prefix):
        for key in cursor.iternext(values=False):
            if not key.startswith(prefix):
                return
            if len(key) == len(prefix) + 9 and key[len(prefix) :].isdigit():
                yield int(key[len(prefix) :])


def picture_keys(path: Path) -> Iterator[bytes]:
    """Yield all keys but those of labels and of the number of samples.

    Raises:
        UserError: the environment is damaged.
    """
    try:
        with _environment(path).begin() as transaction:
            for key in transaction.cursor().iternext(values=False):
                if key != _COUNT and not key.startswith(_LABELS):
                    yield bytes(key)
    except lmdb.Error as error:
        raise _damaged(path, str(error)) from error


def read_value(path: Path, key: bytes) -> bytes:
    """Return the value of ``key``.

    Raises:
        KeyError, OSError: it is missing or cannot be read.
    """
    try:
        with _environment(path).begin() as transaction:
            value = transaction.get(key)
    except lmdb.Error as error:
        raise OSError(str(error)) from error
    if value is None:
        raise KeyError(key.decode("utf-8", "backslashreplace"))
    return bytes(value)


class LmdbWriter:
    """Writes labelled images into an open environment; :meth:`finish` completes it."""

    def __init__(self, environment: lmdb.Environment) -> None:
        self._environment = environment
        self._pending: list[tuple[bytes, bytes]] = []
        self._count = 0

    def write(self, image: bytes, label: str) -> None:
        """Add one image, encoded, and its label."""
        self._count += 1
        self._pending.append((b"%s%09d" % (_IMAGES, self._count), image))
        self._pending.append((b"%s%09d" % (_LABELS, self._count), label.encode("utf-8")))
        if len(self._pending) >= 2 * _ROWS_A_TRANSACTION:
            self._flush()

    def finish(self) -> None:
        """Write what is pending, and the number of samples last."""
        self._pending.append((_COUNT, b"%d" % self._count))
        self._flush()

    def _flush(self) -> None:
        while self._pending:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in self._pending:
                        transaction.put(key, value)
                self._pending.clear()
            except lmdb.MapFullError:
                # A huge map from the start would be a huge file on systems without sparse files.
                self._environment.set_mapsize(2 * self._environment.info()["map_size"])


@contextmanager
def write(out: Path) -> Iterator[LmdbWriter]:
    """Open a new environment for labelled images; it appears at ``out`` when it is whole."""
    temporary = temporary_beside(out)
    try:
        with lmdb.open(str(temporary), map_size=_FIRST_MAP_BYTES) as environment:
            writer = LmdbWriter(environment)
            yield writer
            writer.finish()
            environment.sync(True)
        os.replace(temporary, out)
        flush(out.parent)
    except lmdb.Error as error:
        raise UserError(f"{out} cannot be written: {error}", "Free some space, or name another place") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sample_count(path: Path, value: bytes | None, entries: int) -> int:
    if value is None:
        return 0
    # An absurd number would cost hours of counting; each sample has at least a label.
    if len(value) > 20 or not value.strip().isdigit() or int(value) > entries:
        counted = value[:20].decode("utf-8", "backslashreplace")
        raise _damaged(path, f"num-samples promises {counted} samples, but it has {entries} entries")
    return int(value)


_environments: dict[Path, tuple[FileState, Any]] = {}


def _environment(path: Path) -> Any:
    """Return the open environment at ``path``, opened again where its file has been replaced or written to."""
    state = state_of(path / DATA_FILE if path.is_dir() else path)
    known = _environments.get(path)
    if known is None or known[0] != state:
        if known is not None:
            known[1].close()
        _environments[path] = state, _open(path, state)
    return _environments[path][1]


def _open(path: Path, state: FileState) -> Any:
    try:
        environment = lmdb.open(
            str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, max_readers=512
        )
    except lmdb.Error as error:
        raise _damaged(path, str(error)) from error
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if state[1] < needed:  # reading beyond the file's end would kill the process with SIGBUS
        environment.close()
        raise _damaged(path, f"it has {state[1]} bytes of {needed}")
    return environment


def _close_inherited() -> None:
    for _, environment in _environments.values():
        environment.close()
    _environments.clear()


# A forked worker must close its parent's environments before it opens them again.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def _damaged(path: Path | str, reason: str) -> UserError:
    return UserError(f"{path} cannot be read as LMDB: {reason}", "Copy or write it again")
