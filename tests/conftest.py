"""What tests of several packages draw on."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

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
