"""Tables as text: columns as wide as their cells, numbers right-aligned, at most as wide as the terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import chain
from typing import Any

from dptr.cache.visible import visible

_BETWEEN = "  "
_NARROWEST = 4


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Collection[int] = (), fit: bool = True
) -> str:
    """Lay rows out as text; see :func:`table_lines`."""
    return "\n".join(table_lines(columns, [list(rows)], numbers, fit))


def table_lines(
    columns: Sequence[str], blocks: Iterable[Sequence[Sequence[Any]]], numbers: Collection[int] = (), fit: bool = True
) -> Iterator[str]:
    """Yield a table as lines of text; the first block of rows determines the widths of columns.

    On a terminal long cells are truncated to fit; in a file or a pipe they are not.

    Args:
        columns: headings; empty for a table without.
        blocks: rows, of values of any type, in blocks.
        numbers: columns to right-align in addition to those that hold numbers.
        fit: whether to fit the terminal; False for text that is stored.
    """
    room = shutil.get_terminal_size().columns if fit and sys.stdout.isatty() else None
    waiting = iter(blocks)
    first = next(waiting, [])
    to_the_right = {*numbers, *_numeric_columns(first)}
    headings = [visible(column) for column in columns]
    cells = [[_cell(value, room) for value in row] for row in first]
    widths = [max(map(_width, column)) for column in zip(*([headings] if headings else []), *cells, strict=True)]
    if room is not None:
        widths = _fitted(widths, room, to_the_right)
    if headings:
        yield _line(headings, widths, to_the_right, room)
        yield _BETWEEN.join("-" * width for width in widths)
    later = ([_cell(value, room) for value in row] for block in waiting for row in block)
    for row in chain(cells, later):
        yield _line(row, widths, to_the_right, room)


def _numeric_columns(rows: Sequence[Sequence[Any]]) -> list[int]:
    """Return the columns that hold only numbers and missing values."""
    found = []
    for index, column in enumerate(zip(*rows, strict=True)):
        present = [value for value in column if value is not None]
        if present and all(isinstance(v, int | float | Decimal) and not isinstance(v, bool) for v in present):
            found.append(index)
    return found


def _fitted(widths: Sequence[int], room: int, whole: Collection[int]) -> list[int]:
    """Narrow the widest columns until a line fits, except those of ``whole``: a truncated number is wrong."""
    widest = max(widths, default=0)
    fitted = list(widths)
    while sum(fitted) + len(_BETWEEN) * (len(fitted) - 1) > room and widest > _NARROWEST:
        widest -= 1
        fitted = [w if index in whole else min(w, widest) for index, w in enumerate(widths)]
    return fitted


def _line(cells: Sequence[str], widths: Sequence[int], to_the_right: Collection[int], room: int | None) -> str:
    placed = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        shown = cell if room is None or _width(cell) <= width else _cut(cell, width)
        padding = " " * (width - _width(shown))
        placed.append(padding + shown if index in to_the_right else shown + padding)
    return _BETWEEN.join(placed).rstrip()


def _cell(value: Any, room: int | None) -> str:
    # Six digits for people; a file or a pipe gets the exact number.
    return f"{value:.6g}" if isinstance(value, float) and room is not None else visible(str(value))


def _width(text: str) -> int:
    """Width of ``text`` on a terminal: two for each wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _cut(text: str, width: int) -> str:
    from rich.cells import set_cell_size

    return set_cell_size(text, width - 1) + "…"
