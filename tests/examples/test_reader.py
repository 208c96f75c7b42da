"""What the bundled recogniser is trained on: words, fonts, and the parting of real crops."""

from __future__ import annotations

import random
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dptr.cache.charset import Charset
from dptr.cache.normalization import Normalization
from dptr.cache.word_images.dataset import WordImages
from dptr.pipeline.rendering.fonts import packaged_fonts

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "reader"


def test_what_signs_say_is_in_the_charset_and_same_for_a_seed() -> None:
    words = runpy.run_path(str(FOLDER / "words.py"))
    made = [[make() for _, make in words["miscellaneous"](["exit", "open"], ["the"], random.Random(3))] for _ in "ab"]
    assert made[0] == made[1]
    assert all(text and not Charset.named("94").missing(text) for text in made[0])
    assert any(text.isdigit() for text in made[0])
    cases = {words["in_case"]("exit", random.Random(seed)) for seed in range(60)}
    assert {"EXIT", "Exit", "exit"} <= cases


def test_plain_fonts_are_legible_and_symbols_are_not() -> None:
    pytest.importorskip("font_roboto")
    fonts = runpy.run_path(str(FOLDER / "fonts.py"))
    plain = packaged_fonts().fonts[:12]
    assert (fonts["legibility"](plain) > fonts["PLAIN"]).all()


def test_real_crops_are_parted_by_their_names_alone(tmp_path: Path) -> None:
    crops = tmp_path / "street"
    crops.mkdir()
    names = [f"{number}.png" for number in range(40)]
    for name in names:
        Image.new("RGB", (30, 12), "white").save(crops / name)
    (crops / "labels.tsv").write_text("".join(f"{name}\tword\n" for name in names), encoding="utf-8")
    subprocess.run([sys.executable, FOLDER / "crops.py", crops, "-o", tmp_path / "real"], check=True)
    is_validation = runpy.run_path(str(FOLDER / "crops.py"))["is_validation"]
    expected = sum(map(is_validation, names))
    for side, count in (("validation", expected), ("train", 40 - expected)):
        found = WordImages.open([tmp_path / "real" / f"street-{side}.lmdb"], Charset.named("94"), Normalization())
        assert len(found) == count
    assert 2 <= expected <= 16
