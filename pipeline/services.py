"""What training needs of stage 1, each loaded when it is called; ``cli.py`` hands it over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from dptr.pipeline.text.templates import Template


def find_clip(name: str) -> Path:
    """See :func:`dptr.pipeline.clip.clip_files.find_clip`."""
    from dptr.pipeline.clip import clip_files

    return clip_files.find_clip(name)


def mine_neighbours(prompts: Path, bank: Path, k: int) -> object:
    """See :func:`dptr.pipeline.neighbours.mine_neighbours.mine_neighbours`."""
    from dptr.pipeline.neighbours import mine_neighbours as mining

    return mining.mine_neighbours(prompts, bank, k)


def photo_paths(folder: Path) -> Sequence[Path]:
    """See :func:`dptr.pipeline.rendering.word_lists.photo_paths`."""
    from dptr.pipeline.rendering import word_lists

    return word_lists.photo_paths(folder)


def repair(folder: Path, files: Collection[str]) -> list[str]:
    """See :func:`dptr.pipeline.repair.repair.repair`."""
    from dptr.pipeline.repair import repair as repairing

    return repairing.repair(folder, files)


def prompt_of(template: str) -> Callable[[str], str]:
    """Return what puts a label into ``template``.

    Raises:
        UserError: the template does not hold ``{label}`` once.
    """
    return Template(template).prompt
