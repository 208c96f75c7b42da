"""Logs of a run as JSON lines, one a log step; a resumed run rewrites the steps that it takes again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dptr.cache.errors import UserError
from dptr.cache.stores.files import atomic_path


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line, which holds its ``step``.

    Raises:
        UserError: the disk is full or not writable.
    """
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
    except OSError as error:
        raise UserError(
            f"could not write {path}: {error.strerror}",
            "Make room or mend the permissions, then run the same command; it goes on from the last good checkpoint",
        ) from error


def keep_up_to(path: Path, step: int) -> None:
    """Drop the lines of later steps than ``step``; a file that is not there stays so."""
    if not path.is_file():
        return
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            # A killed process can leave half a line at the very end; its step is taken again.
            break
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
