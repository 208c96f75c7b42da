"""JSON for other programs, where NaN and infinity become null; and what is wrong with JSON that was read."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any) -> str:
    """Return ``value`` as JSON in one line; other types, such as paths, as their text."""
    return json.dumps(_plain(value), ensure_ascii=False, default=str, allow_nan=False)


def what_is_wrong(error: Exception) -> str:
    """Say in words why a JSON file of ours could not be read, or not be understood."""
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
            return "what it says is of another form"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {str(key): _plain(item) for key, item in value.items()} if isinstance(value, dict) else value
