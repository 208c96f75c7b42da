"""Arguments of benchmarks that are judged at once: numbers that are large enough, devices that are there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dptr.pipeline.device import resolve_device


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that is no smaller, for ``type`` of an argument."""

    def number(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if found < least:
            raise argparse.ArgumentTypeError(f"{found} is less than {least}")
        return found

    return number


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the predictions so far as JSON lines, a row for each test set."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def usable_device(name: str) -> str:
    """Return the device's name if it is usable here, for ``type`` of an argument."""
    return resolve_device(name)
