"""An answer as text for people, or as one JSON object for programs; neither holds it in memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from dptr.cache import plain_json
from dptr.cache.sql.query import Answer

_WIDEST_CELL = 60


def table(columns: list[str], rows: list[tuple[Any, ...]]) -> str:
    """Lay a result out as text; long values (vectors, prompts) are cut."""
    return "\n".join(table_lines(columns, [rows]))


def table_lines(columns: list[str], blocks: Iterable[list[tuple[Any, ...]]]) -> Iterator[str]:
    """Yield a result as lines of text; the first block of rows settles how wide columns are."""
    waiting = iter(blocks)
    first = [[_cell(value) for value in row] for row in next(waiting, [])]
    widths = [max(map(len, cells)) for cells in zip(columns, *first, strict=True)]
    yield _line(columns, widths)
    yield "  ".join("-" * width for width in widths)
    yield from (_line(cells, widths) for cells in first)
    for block in waiting:
        yield from (_line([_cell(value) for value in row], widths) for row in block)


def json_pieces(answer: Answer, figures: dict[str, Any]) -> Iterator[str]:
    """Yield the pieces of one JSON object: ``figures``, the columns, all rows as ``result``, and how many they are."""
    started, rows = time.monotonic(), 0
    yield plain_json.dumps({**figures, "columns": answer.columns})[:-1] + ', "result": ['
    for block in answer.blocks:
        texts = (plain_json.dumps(row) for row in block)
        yield (", " if rows else "") + ", ".join(texts)
        rows += len(block)
    seconds = figures.get("seconds", 0.0) + time.monotonic() - started
    yield "], " + plain_json.dumps({"rows": rows, "seconds": seconds})[1:]


def _line(cells: list[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _WIDEST_CELL else text[: _WIDEST_CELL - 1] + "…"
