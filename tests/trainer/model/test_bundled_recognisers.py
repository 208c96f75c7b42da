"""The recognisers that are installed with the package: small, at hand without a run, and they read."""

from __future__ import annotations

import os
import string
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from safetensors import safe_open
from safetensors.torch import save_file

import dptr
from dptr.cache.errors import DamagedStore
from dptr.cache.stores import checksummed
from dptr.cache.text.reading_order import PORTRAIT
from dptr.cli import run_command
from dptr.pipeline.rendering.crop import render_one
from dptr.pipeline.rendering.fonts import packaged_fonts
from dptr.pipeline.rendering.style import RenderStyle
from dptr.trainer import read
from dptr.trainer.choices import ReadingPrecision
from dptr.trainer.model.model_file import BUNDLED, RECOGNISERS, ModelFile
from dptr.trainer.model.recognizer import load_recognizer

pytest.importorskip("font_roboto")
WORDS = ["Exit", "OPEN", "Station", "SALE", "Hotel", "coffee", "2026", "Library", "STREET", "Museum", "$4.50", "Taxi"]


@pytest.mark.parametrize("path", RECOGNISERS.values(), ids=RECOGNISERS)
def test_each_is_small_and_has_a_card(path: Path) -> None:
    card = BUNDLED.parent / ("README.md" if path == BUNDLED else f"{path.stem}.md")
    assert path.stat().st_size + card.stat().st_size < 12_000_000


def test_it_reads_words_in_fonts_of_the_demo() -> None:
    fonts, generator = packaged_fonts(), np.random.default_rng(5)
    style = RenderStyle.of_difficulty(0.3)
    ground_truths = [word for word in WORDS for _ in range(5)]
    crops = [render_one(word, fonts.choose(word, generator), generator, style) for word in ground_truths]
    texts = [prediction.text for prediction in dptr.load().read(crops)]
    right = sum(text.lower() == ground_truth.lower() for text, ground_truth in zip(texts, ground_truths, strict=True))
    assert right >= 0.9 * len(ground_truths), list(zip(texts, ground_truths, strict=True))


def test_letters_higher_than_wide_are_read_upright() -> None:
    letters, pictures = [], []
    for size in (28, 48):
        font = ImageFont.load_default(size)
        for letter in string.ascii_letters + string.digits:
            left, top, right, bottom = font.getbbox(letter)
            picture = Image.new("RGB", (int(right - left) + 8, int(bottom - top) + 8), "white")
            ImageDraw.Draw(picture).text((4 - left, 4 - top), letter, font=font, fill="black")
            if picture.height > PORTRAIT * picture.width:
                letters.append(letter)
                pictures.append(picture)
    texts = [prediction.text for prediction in dptr.load(device="cpu").read(pictures)]
    # l, I and 1 are one stroke in some fonts.
    wrong = [pair for pair in zip(letters, texts, strict=True) if pair[0] != pair[1] and not set(pair) <= set("lI1")]
    assert len(letters) > 15
    assert len(wrong) <= 2, wrong
    assert ("d", "Q") not in wrong


def test_it_keeps_english_words_and_strings_without_order() -> None:
    lexicon = ModelFile.open(BUNDLED).lexicon()
    assert lexicon is not None
    counts = lexicon.counts
    assert len(counts) > 100_000
    assert counts["street"] > counts["streets"] > 0
    assert not any(character.isdigit() for word in counts for character in word)


@pytest.mark.parametrize("has", [True, False])
def test_the_precision_asked_for_does_not_depend_on_the_cpu(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "cpu_has_bfloat16", lambda: has)
    fonts, generator = packaged_fonts(), np.random.default_rng(1)
    style = RenderStyle.of_difficulty(0.3)
    crops = [render_one(word, fonts.choose(word, generator), generator, style) for word in WORDS]

    def confidences(precision: ReadingPrecision) -> list[float]:
        return [prediction.confidence for prediction in dptr.load(precision=precision, lexicon="none").read(crops)]

    full, half = confidences("fp32"), confidences("bf16")
    assert full != half
    assert full == pytest.approx(half, abs=0.1)
    assert confidences("auto") == (half if has else full)


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_a_cpu_whose_onednn_has_no_bfloat16_reads(tmp_path: Path, precision: str) -> None:
    fonts, generator = packaged_fonts(), np.random.default_rng(0)
    word = render_one("Coffee", fonts.choose("Coffee", generator), generator, RenderStyle.of_difficulty(0.0))
    word.save(tmp_path / "sign.png")
    command = [sys.executable, "-m", "dptr", "read", "sign.png", "--quiet", "--precision", precision]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout.split("\t")[:2]) == (0, ["sign.png", "Coffee"]), done.stderr


SCRIPT_WORDS = ["москва", "Библиотека", "Θεσσαλονίκη", "δρόμος", "Straße", "Bäckerei", "Đường", "مدرسة"]


def drawn(word: str) -> Image.Image:
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 32)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(word))
    picture = Image.new("RGB", (right - left + 8, bottom - top + 8), "white")
    ImageDraw.Draw(picture).text((4 - left, 4 - top), word, font=font, fill="black")
    return picture


def test_words_of_several_scripts_are_read() -> None:
    read = [prediction.text for prediction in dptr.load("scripts").read([drawn(word) for word in SCRIPT_WORDS])]
    assert read == [unicodedata.normalize("NFKC", word) for word in SCRIPT_WORDS]


def test_a_command_knows_it_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn("москва").save(tmp_path / "sign.png")
    assert run_command(["read", "scripts", str(tmp_path / "sign.png"), "--workspace", str(tmp_path)]) == 0
    assert "москва" in capsys.readouterr().out


def test_its_charset_holds_each_script_that_it_is_said_to_read() -> None:
    known = set(ModelFile.open(RECOGNISERS["scripts"]).charset.characters)
    letters = {
        "Cyrillic": "яёЖ",
        "Greek": "ωΉς",
        "Hebrew": "אםת",
        "Devanagari": "कीं",
        "Thai": "กำ้",
        "Latin": "äßñở",
        "Arabic": "مدرسة",
    }
    assert all(set(unicodedata.normalize("NFKC", some)) <= known for some in letters.values())


def described(path: Path, **changes: str) -> Path:
    """A checksummed file with the bundled recogniser's description, changed, and with one tensor."""
    with safe_open(BUNDLED, "pt") as file:
        save_file({"w": torch.ones(4, 5)}, path, file.metadata() | changes)
    checksummed.checksum(path)
    return path


@pytest.mark.parametrize("width", ["1=2", "", "0", "-1", "1e3", "99999999999"])
def test_a_width_that_cannot_be_is_damage(tmp_path: Path, width: str) -> None:
    with pytest.raises(DamagedStore, match="is damaged"):
        ModelFile.open(described(tmp_path / "model.safetensors", dptr_memory_dim=width))


def test_weights_of_another_model_are_damage(tmp_path: Path) -> None:
    with pytest.raises(DamagedStore, match="not those of a model of its recipe"):
        load_recognizer(ModelFile.open(described(tmp_path / "model.safetensors")))
