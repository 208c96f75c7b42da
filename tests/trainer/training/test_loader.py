"""Batches come from workers as from this process."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from dptr.trainer.training.loader import load_batches


def test_workers_may_be_spawned(tmp_path: Path) -> None:
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method("spawn", force=True)
    try:
        batches = list(load_batches(functools.partial(torch.full, (2,)), range(3, 6), workers=1))
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    assert [batch.tolist() for batch in batches] == [[3, 3], [4, 4], [5, 5]]
