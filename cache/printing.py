"""Output: tables and text for people, JSON for other programs.

Control characters are escaped and credentials removed; in JSON, NaN and infinity become null.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import chain
from typing import Any

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


#: Control characters, surrogates and line breaks.
_INVISIBLE = ("Cc", "Cs", "Zl", "Zp")


#: Embeddings, overrides and isolates of text direction, which reorder the text around them.
_REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_CREDENTIALS = re.compile(r"(\b[a-z][a-z0-9+.-]*:/{1,2})[^\s@/:]+:[^\s@]*@", re.IGNORECASE)
_SECRET_VALUES = re.compile(r"([?&][\w-]*(?:secret|token|signature|password|sig)[\w-]*=)[^&\s]+", re.IGNORECASE)


def visible(text: str) -> str:
    r"""Return ``text`` with control characters, line breaks and changes of direction as escapes, such as ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _INVISIBLE or c in _REORDERING else c for c in text)


def without_credentials(text: str) -> str:
    """Return ``text`` with ``***`` for keys and secrets in addresses, such as ``s3://KEY:SECRET@bucket``."""
    return _SECRET_VALUES.sub(r"\1***", _CREDENTIALS.sub(r"\1***@", text))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def plain_json(value: Any) -> str:
    """Return ``value`` as one line of JSON; other types, such as paths, as text."""
    return json.dumps(_plain(value), ensure_ascii=False, default=str, allow_nan=False)


def json_problem(error: Exception) -> str:
    """Describe why a JSON file could not be read or parsed."""
    match error:
        case json.JSONDecodeError():
            return f"it is not JSON from line {error.lineno} on" if error.doc.strip() else "it is empty"
        case UnicodeDecodeError():
            return "it is not UTF-8 text"
        case RecursionError():
            return "it is nested too deep"
        case KeyError():
            return f"it lacks {error}"
        case OSError():
            return error.strerror or "it cannot be read"
        case _:
            return "its structure is unknown"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {str(key): _plain(item) for key, item in value.items()} if isinstance(value, dict) else value
