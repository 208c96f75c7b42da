"""JSON for other programs, with null for NaN and infinity; descriptions of JSON that cannot be read."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any) -> str:
    """Return ``value`` as one line of JSON; other types, such as paths, as text."""
    return json.dumps(_plain(value), ensure_ascii=False, default=str, allow_nan=False)


def what_is_wrong(error: Exception) -> str:
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
