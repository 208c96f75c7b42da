"""What training needs of stage 1, each loaded when it is called; ``cli.py`` hands it over."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path


def find_clip(name: str) -> Path:
    """See :func:`dptr.pipeline.clip.clip_files.find_clip`."""
    from dptr.pipeline.clip import clip_files

    return clip_files.find_clip(name)


def mine_neighbours(prompts: Path, bank: Path, k: int) -> object:
    """See :func:`dptr.pipeline.neighbours.mine_neighbours.mine_neighbours`."""
    from dptr.pipeline.neighbours import mine_neighbours as mining

    return mining.mine_neighbours(prompts, bank, k)


def repair(folder: Path, files: Collection[str]) -> list[str]:
    """See :func:`dptr.pipeline.repair.repair.repair`."""
    from dptr.pipeline.repair import repair as repairing

    return repairing.repair(folder, files)
