"""What is stored is compared with its hash when it is first used."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.stores import checks
from dptr.cache.stores.manifest import FileRecord


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, FileRecord]:
    (tmp_path / "embeddings").write_bytes(b"embeddings" * 1000)
    return tmp_path / "embeddings", FileRecord.of(tmp_path / "embeddings")


@pytest.fixture(autouse=True)
def _on() -> Iterator[None]:
    yield
    checks.turn_off(False)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_found_before_a_file_is_read_as_a_whole(stored: tuple[Path, FileRecord]) -> None:
    assert checks.now(*stored) == stored[0]
    flip(stored[0])
    with pytest.raises(DamagedStore, match="contents have changed"):
        checks.now(*stored)


def test_a_flipped_bit_is_found_in_the_background(stored: tuple[Path, FileRecord]) -> None:
    flip(stored[0])
    checks.soon(*stored)
    with pytest.raises(DamagedStore, match="contents have changed"):
        checks.finish()
    checks.finish()


def test_a_file_is_read_once_and_again_when_it_has_changed(
    stored: tuple[Path, FileRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def problem(self: FileRecord, path: Path) -> None:
        read.append(path)

    monkeypatch.setattr(FileRecord, "problem", problem)
    for _ in range(3):
        checks.now(*stored)
        checks.soon(*stored)
    checks.finish()
    assert len(read) == 1
    os.utime(stored[0], ns=(1, 1))
    checks.now(*stored)
    assert len(read) == 2


def test_damage_is_told_before_what_came_of_it(stored: tuple[Path, FileRecord]) -> None:
    flip(stored[0])
    with pytest.raises(DamagedStore, match="contents have changed"), checks.before_ending():
        checks.soon(*stored)
        raise UserError("the loss is nan", "Lower the learning rate")
    with pytest.raises(UserError, match="nan"), checks.before_ending():
        raise UserError("the loss is nan", "Lower the learning rate")


def test_it_can_be_turned_off(stored: tuple[Path, FileRecord]) -> None:
    flip(stored[0])
    checks.turn_off(True)
    checks.now(*stored)
    checks.soon(*stored)
    checks.finish()


def test_an_interrupt_does_not_wait_for_checks(
    stored: tuple[Path, FileRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(FileRecord, "problem", lambda *_: go_on.wait(60) and None)
    try:
        with pytest.raises(KeyboardInterrupt), checks.before_ending():
            checks.soon(*stored)
            raise KeyboardInterrupt
    finally:
        go_on.set()
        checks.finish()
