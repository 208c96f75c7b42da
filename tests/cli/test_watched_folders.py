"""`dptr read --watch`: pictures are read as they come, whole and once, also across a restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from dptr.cli import run_command
from dptr.trainer.watched_folders import images_of, new_pictures


def write(path: Path, content: bytes = b"picture", at: int = 1) -> None:
    path.write_bytes(content)
    os.utime(path, ns=(at, at))


def rounds(folder: Path, happenings: list[Callable[[], object]], before: set[str] | None = None) -> list[list[str]]:
    """What each look yields; between two of them, one thing happens."""
    waiting = iter(happenings)

    def pause(_: float) -> None:
        next(waiting)()

    looks = new_pictures([folder], before or set(), pause)
    return [[path.name for path in found] for found in islice(looks, len(happenings) + 1)]


def test_a_picture_is_taken_once_it_has_stopped_growing_and_again_when_it_changes(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    happenings: list[Callable[[], object]] = [
        lambda: write(tmp_path / "b.png", b"half", at=2),
        lambda: write(tmp_path / "b.png", b"whole", at=3),
        lambda: (tmp_path / "note.txt").write_text("no picture"),
        lambda: write(tmp_path / "a.png", b"another", at=4),
        lambda: None,
        lambda: (tmp_path / "a.png").unlink(),
        lambda: write(tmp_path / "a.png", b"another", at=4),
        lambda: None,
    ]
    assert rounds(tmp_path, happenings) == [[], ["a.png"], [], ["b.png"], [], ["a.png"], [], [], ["a.png"]]


def test_what_was_read_before_is_passed_over_unless_it_changes(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "b.png")
    happenings: list[Callable[[], object]] = [
        lambda: None,
        lambda: write(tmp_path / "a.png", b"another", at=2),
        lambda: None,
    ]
    assert rounds(tmp_path, happenings, {str(tmp_path / "a.png")}) == [[], ["b.png"], [], ["a.png"]]


def test_half_a_line_is_cut_off_and_its_picture_is_read_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"image": "a.png"}\n{"image": "b')
    assert images_of(out) == {"a.png"}
    assert out.read_text() == '{"image": "a.png"}\n'


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["page.png"], "is not a folder"),
        (["."], "cannot grow line by line"),
        ([".", "--boxes", "page.png"], "--boxes for one page"),
    ],
)
def test_what_cannot_be_watched_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    Image.new("RGB", (64, 20)).save(tmp_path / "page.png")
    given = [str(tmp_path / word) if word[0] != "-" else word for word in arguments]
    assert run_command(["read", *given, "--watch", "-o", str(tmp_path / "x.parquet")]) == 2
    assert said in capsys.readouterr().err


def until(condition: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < 120
        time.sleep(0.1)


@pytest.mark.usefixtures("signals_are_heard")
def test_a_watched_folder_is_read_as_pictures_come_and_goes_on_after_an_interrupt(tmp_path: Path) -> None:
    folder, out = tmp_path / "incoming", tmp_path / "readings.jsonl"
    folder.mkdir()
    command = [sys.executable, "-m", "dptr", "read", str(folder), "--watch", "-o", str(out)]

    def names() -> list[str]:
        return [Path(json.loads(line)["image"]).name for line in out.read_text().splitlines()] if out.exists() else []

    def come(name: str) -> None:
        Image.new("RGB", (64, 20), "white").save(tmp_path / name)
        (tmp_path / name).rename(folder / name)

    for expected, coming in ((["a.png", "b.png"], ["a.png", "b.png"]), (["a.png", "b.png", "c.png"], ["c.png"])):
        watching = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            for name in coming:
                come(name)
                until(lambda name=name: name in names())  # type: ignore[misc]
            (folder / "torn.png").write_bytes(b"no picture")
            assert watching.stderr is not None
            assert any("torn.png cannot be read" in line for line in watching.stderr)
            watching.send_signal(signal.SIGINT)
            assert watching.wait(60) == 130
        finally:
            watching.kill()
            watching.communicate()
        assert names() == expected
