"""Rendered number plates: labels as they are given out, pictures as cameras take them, scores with their interval."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import UserError
from dptr.pipeline.rendering.fonts import Font, packaged_fonts

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "number_plates.py"


@pytest.fixture(scope="module")
def roboto() -> Font:
    pytest.importorskip("font_roboto")
    return next(font for font in packaged_fonts().fonts if font.names == ("Roboto", "Regular"))


def test_labels_are_as_plates_have_them_and_held_out_ones_are_others() -> None:
    plates = runpy.run_path(str(PROGRAM))
    assert len(set(plates["PROVINCES"])) == 31
    forms = {
        "blue": "[A-HJ-NP-Z0-9]{5}",
        "green": "[DFABCEGHJK][A-HJ-NP-Z0-9][0-9]{4}|[0-9]{5}[DF]",
        "yellow": "[A-HJ-NP-Z0-9]{4}[A-HJ-NP-Z0-9学]",
        "white": "[A-HJ-NP-Z0-9]{4}[A-HJ-NP-Z0-9警]",
        "black": "[A-HJ-NP-Z0-9]{4}[A-HJ-NP-Z0-9港澳领]",
    }
    drawn = []
    for held_out in (False, True):
        rng = np.random.default_rng(0)
        drawn.append({plates["label"](kind, rng, held_out) for kind in forms for _ in range(60)})
        rng = np.random.default_rng(0)
        for kind, form in forms.items():
            for _ in range(60):
                assert re.fullmatch(f"[{plates['PROVINCES']}][A-HJ-NP-Z]({form})", plates["label"](kind, rng, held_out))
    assert not drawn[0] & drawn[1]
    assert {character for text in drawn[0] | drawn[1] for character in text} <= set(plates["CHARSET"])


@pytest.mark.parametrize(("kind", "text"), [("blue", "皖A12345"), ("green", "皖AD12345"), ("white", "皖A1234警")])
def test_a_plate_has_its_colour_and_characters_over_its_whole_width(kind: str, text: str, roboto: Font) -> None:
    plates = runpy.run_path(str(PROGRAM))
    plate = plates["paint"](text, kind, (roboto, roboto), np.random.default_rng(1))
    assert plate.width == (240 if len(text) == 8 else 220)
    pixels = np.asarray(plate, np.float64)
    assert np.abs(np.median(pixels[10:60], axis=(0, 1)) - plates["KINDS"][kind][1]).max() < 110
    grey = pixels[14:56].mean(-1)
    for left in plates["_lefts"](len(text)):
        cell = grey[:, round(left / 2) : round(left / 2) + 21]
        assert np.ptp(cell) > 60


def test_crops_that_are_there_are_kept_and_missing_fonts_are_named(
    tmp_path: Path, roboto: Font, monkeypatch: pytest.MonkeyPatch
) -> None:
    plates = runpy.run_path(str(PROGRAM))
    with pytest.raises(UserError, match="No Such Sans"):
        plates["fonts_of"](["No Such Sans"], "A")
    out = tmp_path / "train.parquet"
    monkeypatch.setitem(plates["render"].__globals__, "fonts_of", lambda families, sample: [roboto])
    plates["render"](out, 3, plates["SEEN"], seed=0)
    made = out.read_bytes()
    plates["render"](out, 9, plates["SEEN"], seed=0)
    assert out.read_bytes() == made
    images = WordImages.open_as_written([out])
    assert len(images) == 3
