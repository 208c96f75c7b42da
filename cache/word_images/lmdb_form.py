"""LMDB with the field's keys: ``num-samples``, ``image-%09d`` and ``label-%09d``, counted from 1.

The source holds no open environment, so that it can be pickled to a worker. Environments are kept by the process: none
may be opened twice in it, none may cross a fork.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from dptr.cache.errors import UserError


@dataclass(frozen=True)
class LmdbSource:
    """One environment: a folder with ``data.mdb``, or that file alone."""

    path: Path

    @property
    def name(self) -> str:
        """The environment's path."""
        return str(self.path)

    def labels(self) -> Iterator[tuple[str, str | None]]:
        """Yield key and label of each sample that ``num-samples`` promises; None where image or label is missing.

        Raises:
            UserError: the environment is damaged or has no number of samples.
        """
        try:
            with _environment(str(self.path)).begin() as transaction:
                cursor = transaction.cursor()
                for index in range(1, self._count(transaction.get(b"num-samples")) + 1):
                    key = f"image-{index:09d}"
                    label = transaction.get(b"label-%09d" % index)
                    # Moving the cursor finds the key without touching the image's pages.
                    present = label is not None and cursor.set_key(key.encode())
                    yield key, label.decode("utf-8", "replace") if present else None
        except lmdb.Error as error:
            raise _damaged(self.name, str(error)) from error

    def _count(self, value: bytes | None) -> int:
        if value is None or not value.strip().isdigit():
            raise UserError(f"{self.path} has no num-samples", "Write it again with `dptr pack-crops`")
        return int(value)

    def read(self, key: str) -> bytes:
        """Return one encoded image.

        Raises:
            KeyError, OSError: it is missing or cannot be read.
        """
        try:
            with _environment(str(self.path)).begin() as transaction:
                value = transaction.get(key.encode())
        except lmdb.Error as error:
            raise OSError(str(error)) from error
        if value is None:
            raise KeyError(key)
        return bytes(value)


_environments: dict[str, Any] = {}


def _environment(path: str) -> Any:
    if path not in _environments:
        _environments[path] = _open(path)
    return _environments[path]


def _open(path: str) -> Any:
    is_folder = os.path.isdir(path)
    try:
        environment = lmdb.open(path, subdir=is_folder, readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise _damaged(path, str(error)) from error
    size = os.path.getsize(os.path.join(path, "data.mdb") if is_folder else path)
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if size < needed:  # reading a page behind the file's end would kill the process, not raise
        environment.close()
        raise _damaged(path, f"it has {size} bytes of {needed}")
    return environment


def _close_inherited() -> None:
    for environment in _environments.values():
        environment.close()
    _environments.clear()


# A forked worker may not use its parent's environments, nor open them again before it has closed its copies.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path} cannot be read as LMDB: {reason}", "Copy or write it again")
