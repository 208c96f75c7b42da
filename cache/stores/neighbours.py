"""Each prompt's nearest crops, found once, so that no search happens in a training loop.

``neighbours.parquet`` is for SQL, ``neighbours.npy`` for training: one row a prompt, its crops nearest first. Both are
committed in the prompt store's manifest with the identity of their inputs, so that outdated neighbours are rejected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import INDEX_FILE, NEIGHBOURS_ARRAY
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.shards import checked_rows

DETAIL = "neighbours"

TABLE_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),  # of the prompt
        ("crops", pa.list_(pa.int64())),  # ids of the crops, nearest first
        ("cosines", pa.list_(pa.float32())),
    ]
)

_ADVICE = "Run `dptr mine-neighbours`"


class Neighbours:
    """The nearest crops of every prompt, memory-mapped: ``crops``, shape (prompts, k), int32."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.crops: NDArray[np.int32] = np.load(path, mmap_mode="r")

    @classmethod
    def open(cls, prompts: Path, bank: OrpBank) -> Neighbours:
        """Open the neighbours of a prompt store's rows in ``bank``.

        Raises:
            UserError: there are none.
            DamagedStore: they are of another bank or of fewer prompts, or the file is damaged.
        """
        manifest = Manifest.load(prompts, "prompts")
        if DETAIL not in manifest.details:
            raise UserError(f"{prompts} has no neighbours in {bank.folder}", _ADVICE)
        outdated = why_outdated(manifest, bank.manifest)
        if outdated:
            raise DamagedStore(f"the neighbours in {prompts} are out of date: {outdated}", _ADVICE)
        return cls(manifest.checked(prompts, NEIGHBOURS_ARRAY))

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def k(self) -> int:
        """Neighbours per prompt."""
        return int(self.crops.shape[1])

    def of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the crop row numbers of some prompts' neighbours, nearest first, shape (batch, k)."""
        return self.crops[checked_rows(rows, len(self))].astype(np.int64)

    def __reduce__(self) -> tuple[type[Neighbours], tuple[Path]]:
        return Neighbours, (self._path,)


def made_from(prompts: Manifest, bank: Manifest) -> dict[str, Any]:
    """Return the identity of the inputs of mining."""
    index = bank.files.get(INDEX_FILE)
    return {
        "weights": bank.identity["weights"],
        "prompts": prompts.rows,
        "crops": bank.rows,
        "index": index and index.xxh3,
    }


def why_outdated(prompts: Manifest, bank: Manifest, k: int | None = None) -> str | None:
    """Return why the committed neighbours cannot be used for these two stores, or None when they can.

    Args:
        prompts: the prompt store's manifest.
        bank: the bank's manifest.
        k: neighbours wanted of each prompt; None takes any number.
    """
    if DETAIL not in prompts.details or NEIGHBOURS_ARRAY not in prompts.files:
        return "there are none"
    mined = prompts.details[DETAIL]
    for name, value in made_from(prompts, bank).items():
        if mined[name] != value:
            return f"{name} was {mined[name]}, is {value}"
    return f"k was {mined['k']}, {k} are wanted" if k is not None and mined["k"] != k else None
