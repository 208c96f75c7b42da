"""What tests of several packages draw on."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from dptr.cache.progress import set_quiet


@pytest.fixture(autouse=True)
def _hear_notes() -> Iterator[None]:
    """``--quiet`` of one test hushes no other."""
    set_quiet(False)
    yield
    set_quiet(False)


@pytest.fixture
def signals_are_heard() -> Iterator[None]:
    """Signals take effect here and in processes started here, though tests in the background of a shell ignore some."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def forked_python() -> Iterator[str]:
    """A program that stands in for ``python`` and starts at once: see ``forked_python.py``. Forks find it as theirs."""
    server = Path(__file__).with_name("forked_python.py")
    with tempfile.TemporaryDirectory() as folder:
        program, address = Path(folder, "python"), str(Path(folder, "socket"))
        command = shlex.join([sys.executable, "-I", "-S", str(server), "start", address])
        program.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        program.chmod(0o755)
        serving = [sys.executable, str(server), "serve", address, str(program)]
        with subprocess.Popen(serving, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
            assert running.stdout is not None
            assert running.stdout.readline() == b"ready\n"
            yield str(program)
            running.communicate()


@pytest.fixture
def dptr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a command that must succeed, in the test's ``ws``; return its JSON, with stderr as ``said``."""
    from dptr.cli import run_command

    def run(*arguments: object) -> dict[str, Any]:
        command = [*map(str, arguments), *(() if "--workspace" in arguments else ("--workspace", str(tmp_path / "ws")))]
        capsys.readouterr()
        code = run_command([*command, "--json"])
        said = capsys.readouterr()
        assert code == 0, said.err
        result: dict[str, Any] = json.loads(said.out.splitlines()[-1])
        return result | {"said": said.err}

    return run


@pytest.fixture(scope="session")
def small() -> Callable[..., list[str]]:
    """Sections of a recipe (all, where none is named) -> options that make what they describe small."""
    sizes = {
        "decoder": ["decoder.dim=32", "decoder.heads=2", "decoder.feed_forward=32", "decoder.layers=1"],
        "encoder": ["encoder.dim=32", "encoder.heads=2", "encoder.layers=1", "encoder.patch_height=16"],
        "fmu": ["fmu.queries=8", "fmu.heads=2"],
        "pretrain": ["pretrain.batch_size=8"],
        "finetune": ["finetune.batch_size=4"],
    }

    def options(*sections: str) -> list[str]:
        return [f"--set={size}" for section in sections or sizes for size in sizes[section]]

    return options


@pytest.fixture(scope="session")
def draw_crops() -> Callable[[Path, Sequence[str]], Path]:
    """A new folder, words -> the folder with a crop of each word, ``0.png`` and on, and ``labels.tsv``."""

    def draw(folder: Path, words: Sequence[str]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number, word in enumerate(words):
            image = Image.new("RGB", (64, 20), "white")
            ImageDraw.Draw(image).text((8, 4), word, fill="black")
            image.save(folder / f"{number}.png")
        lines = [f"{number}.png\t{word}\n" for number, word in enumerate(words)]
        (folder / "labels.tsv").write_text("".join(lines), encoding="utf-8")
        return folder

    return draw


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a prompt store of 120 words and an ORP bank of 4 crops, to be read only."""
    from dptr.cli import run_command

    folder = tmp_path_factory.mktemp("stores")
    words = [a + b + c for a in "bdfgkmpt" for b in "aeiou" for c in "lnr"]
    (folder / "words.txt").write_text("\n".join(words))
    Image.effect_mandelbrot((120, 90), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(folder / "photo.png")
    common = ["--workspace", str(folder / "dptr_data"), "--quiet"]
    assert run_command(["embed-text", str(folder / "words.txt"), *common]) == 0
    assert run_command(["build-orp-bank", str(folder / "photo.png"), "--crops-per-image", "4", *common]) == 0
    return folder / "dptr_data"
