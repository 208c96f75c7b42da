"""Rendering that takes after crops: what is measured of them, and that rendered crops are measured alike."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import UserError
from dptr.cli import run_command
from dptr.pipeline.rendering.fonts import packaged_fonts
from dptr.pipeline.rendering.like import Look, looks_of, looks_of_pictures

BLUE, YELLOW = (20, 30, 120), (240, 220, 60)


def crops(folder: Path, size: tuple[int, int], ground: tuple[int, ...], ink: tuple[int, ...], blur: float) -> Path:
    folder.mkdir()
    font = packaged_fonts().fonts[0].at(size[1] * 3 // 4)
    for number, word in enumerate(["STOP", "EXIT", "TAXI", "BANK"] * 3):
        image = Image.new("RGB", size, ground)
        ImageDraw.Draw(image).text((size[0] / 2, size[1] / 2), word, ink, font, anchor="mm")
        image.filter(ImageFilter.GaussianBlur(blur)).save(folder / f"{number}.jpg", quality=60)
    lines = [f"{number}.jpg\t{word}\n" for number, word in enumerate(["STOP", "EXIT", "TAXI", "BANK"] * 3)]
    (folder / "labels.tsv").write_text("".join(lines))
    return folder


def middle(looks: tuple[Look, ...], name: str) -> float:
    return float(np.median([getattr(look, name) for look in looks]))


def test_what_crops_look_like_is_measured(tmp_path: Path) -> None:
    looks = looks_of(crops(tmp_path / "dark", (140, 40), BLUE, YELLOW, 1.5))
    assert len(looks) == 12
    np.testing.assert_allclose(np.median([look.ground for look in looks], axis=0), BLUE, atol=25)
    assert all(look.ink[0] > look.ground[0] + 60 for look in looks), "light on dark"
    assert {look.height for look in looks} == {40}
    assert middle(looks, "character_width") == pytest.approx(140 / 40 / 4)
    assert middle(looks, "quality") == pytest.approx(60, abs=3)
    sharp = looks_of(crops(tmp_path / "light", (140, 40), YELLOW, BLUE, 0.1))
    assert middle(looks, "blur") > 1.5 * middle(sharp, "blur")
    assert all(look.ink[0] < look.ground[0] - 60 for look in sharp), "dark on light"


def test_a_slope_is_measured_in_degrees() -> None:
    image = Image.new("L", (300, 60), 255)
    ImageDraw.Draw(image).line((10, 40, 290, 20), 0, 8)
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "PNG")
    (look,) = looks_of_pictures([(stream.getvalue(), "")])
    assert look.slope == pytest.approx(-np.degrees(np.arctan(20 / 280)), abs=0.5)
    assert (look.quality, look.character_width) == (0, 0.0)


def test_rendered_crops_take_after_others(tmp_path: Path) -> None:
    like = crops(tmp_path / "like", (60, 18), YELLOW, BLUE, 0.8)
    (tmp_path / "words.txt").write_text("PARK\nROAD\nLANE\nHILL\n")
    out = tmp_path / "rendered.parquet"
    command = ["render-words", str(tmp_path / "words.txt"), "-o", str(out), "--count", "24", "--like", str(like)]
    assert run_command([*command, "--quiet"]) == 0
    made, model = looks_of(out), looks_of(like)
    assert middle(made, "height") == pytest.approx(18, abs=2)
    assert middle(made, "character_width") == pytest.approx(middle(model, "character_width"), rel=0.4)
    for name in ("ground", "ink"):
        found, wanted = (np.median([getattr(look, name) for look in looks], axis=0) for looks in (made, model))
        np.testing.assert_allclose(found, wanted, atol=40)
    crops_made = WordImages.open_as_written([out])
    assert {sample.label for sample in crops_made.samples} == {"PARK", "ROAD", "LANE", "HILL"}


def test_a_folder_without_a_picture_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no crop in"):
        looks_of(tmp_path / "empty")
