"""An answer as one JSON object for programs, without holding it in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from dptr.cache import plain_json
from dptr.cache.sql.query import Answer


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
