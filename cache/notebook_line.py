"""Progress below a notebook's cell: one line with a bar for each piece of work, redrawn where it stands."""

from __future__ import annotations

import html
import sys
import warnings
from typing import Any


def in_notebook() -> bool:
    """Return whether this runs in the kernel of a notebook, whose output can be redrawn."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")


if in_notebook():
    # Libraries that are loaded with tqdm miss widgets, which nothing here draws.
    warnings.filterwarnings("ignore", "IProgress not found")


class NotebookLine:
    """The line of one piece of work; saved with the notebook as it stood last."""

    def __init__(self, text: str, done: int, total: int | None) -> None:
        from IPython.display import display

        self._shown: Any = display(_mime(text, done, total), raw=True, display_id=True)

    def update(self, text: str, done: int, total: int | None) -> None:
        """Redraw it."""
        self._shown.update(_mime(text, done, total), raw=True)


def _mime(text: str, done: int, total: int | None) -> dict[str, str]:
    """The line with a bar for browsers, and as it is for all else."""
    bar = f'<progress value="{done}" max="{total}" style="width: 10em"></progress> ' if total else ""
    return {"text/plain": text, "text/html": f"{bar}<code>{html.escape(text)}</code>"}
