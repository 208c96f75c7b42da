"""Eight small photos, and what a bank rejected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image


def _draw_photo(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((96, 72)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(8):
        _draw_photo(tmp_path / "photos" / f"{number}.png", number)
    return tmp_path / "photos"


def _rejected(bank: Path) -> dict[str, str]:
    rows = pq.read_table(bank / "quarantine.parquet").to_pylist()
    return {Path(row["source"]).name: row["reason"] for row in rows}


@pytest.fixture
def draw_photo() -> Callable[[Path, int], None]:
    return _draw_photo


@pytest.fixture
def rejected() -> Callable[[Path], dict[str, str]]:
    """A bank's folder -> reasons by the names of rejected files."""
    return _rejected
