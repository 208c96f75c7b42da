"""A clock that is set back, as commands see it: files from the future, and a time before that of the last run."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from dptr.cache.stores.verify import verify
from dptr.cli import run_command

_YEAR = 365 * 86400


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_store_grows_to_the_same_files_when_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, more = tmp_path / "few.txt", tmp_path / "more.txt"
    few.write_text("street\nroad\nlane\n")
    more.write_text("street\nroad\nlane\nmarket\nsquare\n")

    def embed(words: Path, store: str) -> int:
        return run_command(["embed-text", str(words), "-o", str(tmp_path / store), "--shard-rows", "2", "--quiet"])

    assert [embed(few, "undisturbed"), embed(more, "undisturbed"), embed(few, "store")] == [0, 0, 0]
    now = time.time()
    for path in (tmp_path / "store").iterdir():
        os.utime(path, (now + _YEAR, now + _YEAR))
    monkeypatch.setattr(time, "time", lambda: now - _YEAR)
    assert embed(more, "store") == 0
    assert files_of(tmp_path / "store") == files_of(tmp_path / "undisturbed")
    assert verify(tmp_path / "store") == []
