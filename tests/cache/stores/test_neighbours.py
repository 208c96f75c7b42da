from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import INDEX_FILE, NEIGHBOURS_ARRAY
from dptr.cache.stores.manifest import FileRecord, Manifest
from dptr.cache.stores.neighbours import DETAIL, Neighbours, made_from, why_outdated

CROPS = np.arange(12, dtype=np.int32).reshape(4, 3)


def bank_manifest(index: str = "i") -> Manifest:
    return Manifest("orp", {"encoder": "made up", "weights": "w"}, files={INDEX_FILE: FileRecord(1, index, index)})


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    np.save(tmp_path / NEIGHBOURS_ARRAY, CROPS)
    manifest = Manifest("prompts", {"encoder": "made up", "weights": "w"})
    manifest.files[NEIGHBOURS_ARRAY] = FileRecord.of(tmp_path / NEIGHBOURS_ARRAY)
    manifest.details[DETAIL] = {**made_from(manifest, bank_manifest()), "k": 3}
    manifest.save(tmp_path)
    return tmp_path


def bank(index: str = "i") -> Any:
    return SimpleNamespace(manifest=bank_manifest(index), folder=Path("orp"))


def test_rows_come_back_as_they_were_written(prompts: Path) -> None:
    neighbours = Neighbours.open(prompts, bank())
    np.testing.assert_array_equal(neighbours.of(np.array([2, 0, 2])), CROPS[[2, 0, 2]])
    assert (len(neighbours), neighbours.k) == (4, 3)


def test_another_index_makes_them_outdated(prompts: Path) -> None:
    with pytest.raises(DamagedStore, match="index was i, is j"):
        Neighbours.open(prompts, bank("j"))
    manifest = Manifest.load(prompts, "prompts")
    assert why_outdated(manifest, bank_manifest(), k=3) is None
    assert why_outdated(manifest, bank_manifest(), k=4) == "k was 3, 4 are wanted"


def test_missing_ones_and_damaged_ones(prompts: Path) -> None:
    size = (prompts / NEIGHBOURS_ARRAY).stat().st_size
    (prompts / NEIGHBOURS_ARRAY).write_bytes(b"x" * size)
    with pytest.raises(DamagedStore, match="damaged"):
        Neighbours.open(prompts, bank())
    Manifest("prompts", {"encoder": "made up", "weights": "w"}).save(prompts)
    with pytest.raises(UserError, match="mine-neighbours"):
        Neighbours.open(prompts, bank())
