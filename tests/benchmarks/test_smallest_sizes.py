"""Every benchmark and every example runs at its smallest size, which its own description names.

They run in this process, so that the libraries are loaded once; WORDS, PHOTOS and the like are small stand-ins.
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dptr.cli import run_command

ROOT = Path(__file__).resolve().parents[2]
#: No programs of their own, or programs that need readers which are not dptr's to install.
WITHOUT = {"plain_parseq.py", "peers.py", "peer_readers.py", "rapidocr_worker.py"}
SMALL = [
    *("decoder.dim=32", "decoder.heads=2", "decoder.feed_forward=32", "decoder.layers=1"),
    *("encoder.dim=32", "encoder.heads=2", "encoder.layers=1", "encoder.patch_height=16"),
    *("fmu.queries=8", "fmu.heads=2", "pretrain.batch_size=8", "finetune.batch_size=4"),
]


def smallest_size(path: Path) -> str | None:
    """The arguments that a program's description names."""
    found = re.search(r"^Smallest size: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return None if found is None else found[1]


PROGRAMS = [path for folder in ("benchmarks", "examples") for path in sorted((ROOT / folder).glob("*.py"))]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the words in capitals stand for: words, photos, stores, runs and an exported model, all small."""
    folder = tmp_path_factory.mktemp("stand_ins")
    generator = np.random.default_rng(0)
    syllables = [a + b for a in "bcdfghlmnprstvw" for b in "aeiou"]
    words = list(dict.fromkeys("".join(generator.choice(syllables, 3)) for _ in range(3000)))
    (folder / "words.txt").write_text("\n".join(words) + "\n")
    (folder / "few.txt").write_text("\n".join(words[:150]) + "\n")
    (folder / "photos").mkdir()
    for number in range(2):
        pixels = generator.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((160, 120)).save(folder / "photos" / f"{number}.png")
    few, crops, runs = folder / "few.txt", folder / "crops", folder / "ws" / "runs"
    sizes = [part for setting in SMALL for part in ("--set", setting)]
    for command in (
        ["embed-text", few],
        ["build-orp-bank", folder / "photos", "--crops-per-image", "2"],
        ["pretrain", "--steps", "2", "-o", runs / "pretrained", *sizes],
        ["render-words", few, "-o", crops, "--count", "12", "--style", "clean"],
        ["finetune", "--data", crops, "--from", "none", "--steps", "2", "-o", runs / "finetuned", *sizes],
        ["export", runs / "finetuned", "--to", "onnx", "-o", folder / "model.onnx"],
    ):
        assert run_command([*map(str, command), "--workspace", str(folder / "ws"), "--quiet"]) == 0, command[0]
    named = {
        "WORDS": folder / "words.txt",
        "FEW_WORDS": few,
        "PHOTOS": folder / "photos",
        "WORKSPACE": folder / "ws",
        "PRETRAINED": runs / "pretrained",
        "FINETUNED": runs / "finetuned",
        "CROPS": crops,
        "ONNX": folder / "model.onnx",
        "IMAGE": next(crops.rglob("*.jpg")),
        "OUT": folder / "out",
        "FIGURE": folder / "figure.svg",
    }
    return {name: str(path) for name, path in named.items()}


@pytest.fixture
def _as_a_program(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a program sets for its process is undone: threads, where modules are looked for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


def test_every_program_names_its_smallest_size() -> None:
    silent = {path.name for path in PROGRAMS if smallest_size(path) is None}
    assert silent - WITHOUT == set()


@pytest.mark.slow
@pytest.mark.xdist_group("smallest_sizes")
@pytest.mark.usefixtures("_as_a_program")
@pytest.mark.parametrize("path", [path for path in PROGRAMS if smallest_size(path)], ids=lambda path: path.name)
def test_it_runs(
    path: Path, stand_ins: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [stand_ins.get(word, word) for word in shlex.split(smallest_size(path) or "")]
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as done:
        assert done.code in (None, 0), done.code  # noqa: PT017 - a program's good end is no failure
    # A figure that went wrong shows as one of these; a benchmark that prints nothing measured nothing.
    said = capsys.readouterr().out
    assert path.parent.name == "examples" or re.search(r"\d", said)
    assert not re.search(r"\b(nan|inf)\b", said)
