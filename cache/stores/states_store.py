"""What prompt stores, ORP banks and word-crop stores have in common: a manifest, and shards of token states."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dptr.cache.errors import DamagedStore
from dptr.cache.stores.manifest import Manifest, StoreKind
from dptr.cache.stores.shards import StatesReader


class StatesStore:
    """A committed store, opened read-only; it goes to other processes by its path.

    Opening reads the manifest alone; everything else is read when it is first used, states by memory map.

    Attributes:
        KIND: which kind of store. MADE_BY: the command that writes such a store.
    """

    KIND: ClassVar[StoreKind]
    MADE_BY: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest.load(folder, self.KIND)
        if not self.manifest.shards:
            raise DamagedStore(f"{folder} holds no finished shard", f"Run `{self.MADE_BY}` again; it goes on")
        self._reader = StatesReader(folder, self.manifest.shards)

    def __getstate__(self) -> dict[str, Any]:
        # Another process reads again what is kept here for quick use.
        named = [name for kind in type(self).__mro__ for name, value in vars(kind).items() if _is_cached(value)]
        return {name: value for name, value in self.__dict__.items() if name not in named}

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def dim(self) -> int:
        """Width of one token state."""
        return int(self._reader.file(0).tokens.shape[1])

    @cached_property
    def pooled_mean(self) -> NDArray[np.float32]:
        """Mean of the pooled vectors, each of length one: (pooled_dim,)."""
        return self._reader.mean_direction()

    def check_states(self) -> None:
        """Begin to compare all states with their hashes, in the background: :mod:`dptr.cache.stores.checks`."""
        self._reader.check_all()

    def release(self) -> None:
        """Drop mapped pages from the process; the next batch reads them again from the page cache."""
        self._reader.release()


def _is_cached(value: object) -> bool:
    return isinstance(value, cached_property)
