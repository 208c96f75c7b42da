"""Words of every script: letters joined, ordered and stacked, in the language's forms, in rows and in columns."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fontTools.ttLib import TTCollection, TTFont
from PIL import features

from dptr.cache.errors import UserError
from dptr.cache.text.reading_order import may_stand_in_a_column
from dptr.pipeline.rendering.crop import render_one
from dptr.pipeline.rendering.fonts import Font, find_fonts
from dptr.pipeline.rendering.letters import letter_masks
from dptr.pipeline.rendering.render_words import render_words
from dptr.pipeline.rendering.shaping import may_stand_apart, needs_shaping
from dptr.pipeline.rendering.style import CLEAN, RenderStyle

NOTO = Path("/usr/share/fonts/truetype/noto")
CJK = Path("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc")
PLAIN = RenderStyle.of_difficulty(0)


def noto(name: str) -> Path:
    path = NOTO / f"{name}-Regular.ttf"
    if not path.is_file():
        pytest.skip("fonts-noto-core is not installed")
    return path


def cjk() -> Path:
    if not CJK.is_file():
        pytest.skip("fonts-noto-cjk is not installed")
    return CJK


def without_rules(path: Path, folder: Path) -> Font:
    """A font with the glyphs and without the rules."""
    font = TTFont(path)
    for table in ("GSUB", "GPOS", "GDEF"):
        if table in font:
            del font[table]
    for table in font["cmap"].tables:
        # HarfBuzz joins Arabic by these where a font has no rules.
        table.cmap = {point: name for point, name in table.cmap.items() if not 0xFB50 <= point < 0xFF00}
    font.save(folder / path.name)
    return Font(folder / path.name)


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def ink(word: str, font: Font, column: bool = False) -> np.ndarray:
    return np.asarray(letter_masks(word, font, rng(0), PLAIN, column).getchannel(3)) > 128


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("NotoSansDevanagari", "हिन्दी"),
        ("NotoSansDevanagari", "सत्यम्"),  # ends in a virama that is to be seen
        ("NotoSansThai", "ที่"),
        ("NotoSansTamil", "தமிழ்"),
        ("NotoNaskhArabic", "عربي"),
        ("NotoSansBengali", "বাংলা"),
    ],
)
def test_a_font_without_the_rules_is_not_for_words_that_need_them(name: str, word: str, tmp_path: Path) -> None:
    font, stripped = Font(noto(name)), without_rules(noto(name), tmp_path)
    assert needs_shaping(word)
    assert font.covers(word)
    assert all(stripped._covers(character) for character in word)
    assert not stripped.covers(word)


def test_a_conjunct_that_a_font_writes_with_a_virama_is_not_drawn_by_it(tmp_path: Path) -> None:
    path = noto("NotoSansDevanagari")
    tables = TTFont(path)
    for record in tables["GSUB"].table.FeatureList.FeatureRecord:
        record.Feature.LookupListIndex = []
        record.Feature.LookupCount = 0
    tables.save(tmp_path / path.name)
    assert Font(path).covers("क्ष")
    assert not Font(tmp_path / path.name).covers("क्ष")
    assert Font(tmp_path / path.name).covers("कम्")  # a virama that is to be seen


def test_words_that_nobody_could_read_are_for_no_font() -> None:
    font = Font(noto("NotoSansDevanagari"))
    assert not font.covers("क्\u200bष")  # a blank that nobody sees
    assert not font.covers("\u093eक")  # a sign without its letter: a dotted circle


def test_right_to_left_words_begin_at_the_right() -> None:
    font = Font(noto("NotoNaskhArabic"))
    # Alef, which is high and narrow, does not join with what follows; beh is broad and low.
    word, alef = ink("اب", font), ink("ا", font)
    columns = np.flatnonzero(word.any(0))
    right = word[:, columns[-1] - alef.shape[1] // 3 : columns[-1] + 1]
    left = word[:, columns[0] : columns[0] + alef.shape[1] // 3]
    heights = [np.ptp(np.flatnonzero(side.any(1))) for side in (left, right)]
    assert heights[1] > 1.5 * heights[0]


def test_letters_that_join_are_not_tracked_and_others_are() -> None:
    assert all(map(may_stand_apart, ("hôtel", "Привет", "中国", "カナ", "한국")))
    assert not any(map(may_stand_apart, ("कमल", "عربي", "ที่", "שלום", "தமிழ்")))
    apart = replace(PLAIN, tracking=1.0)
    font = Font(noto("NotoSansDevanagari"))
    widths = {letter_masks("कमल", font, rng(index), replace(apart, height=(30, 30))).width for index in range(12)}
    assert max(widths) - min(widths) < 24  # margins, no tracking


def test_faces_of_a_collection_are_fonts_of_one_family_in_their_languages_forms() -> None:
    with TTCollection(cjk(), lazy=True) as collection:
        count = len(collection.fonts)
    fonts = find_fonts(cjk())
    assert [font.index for font in fonts.fonts] == list(range(count))
    assert len({font.family for font in fonts.fonts}) == 1
    drawn = {tag: ink("骨", find_fonts(cjk(), tag).fonts[0]) for tag in ("ja", "zh-Hans")}
    assert drawn["ja"].shape != drawn["zh-Hans"].shape or (drawn["ja"] != drawn["zh-Hans"]).any()


def test_fonts_made_for_another_language_with_han_characters_are_left_out(tmp_path: Path) -> None:
    cjk()
    shutil.copy(noto("NotoSansThai"), tmp_path)
    shutil.copy(CJK, tmp_path)
    simplified, traditional = find_fonts(tmp_path, "zh-Hans"), find_fonts(tmp_path, "zh-TW")
    assert {font.names[0].split()[-1] for font in simplified.fonts if font.index == 2} == {"SC"}
    assert not {font.index for font in simplified.fonts} & {3, 4}
    assert {font.index for font in traditional.fonts if font.path.suffix == ".ttc"} >= {3, 4}
    assert any(font.path.suffix == ".ttf" for font in simplified.fonts)  # says nothing of Han characters
    with pytest.raises(UserError, match="zh-Hans"):
        find_fonts(tmp_path, "simplified chinese")


def test_columns_are_higher_than_wide_and_only_of_characters_that_stand_so() -> None:
    font = Font(cjk())
    upright = replace(CLEAN, vertical=1.0)
    assert all(image.height > image.width for image in (render_one("東京都", font, rng(i), upright) for i in range(8)))
    for word in ("東", "Tokyo", "東京A"):
        assert not may_stand_in_a_column(word)
        assert render_one(word, font, rng(0), upright).height < 2 * render_one(word, font, rng(0), upright).width


def test_a_share_of_words_is_set_in_columns_and_none_by_default() -> None:
    font = Font(cjk())
    half = replace(CLEAN, vertical=0.5)
    columns = [image.height > image.width for image in (render_one("東京都", font, rng(i), half) for i in range(40))]
    assert 8 < sum(columns) < 32
    assert not any(image.height > image.width for image in (render_one("東京都", font, rng(i)) for i in range(10)))


def test_the_long_vowel_is_upright_in_a_column_or_the_font_is_not_for_it(tmp_path: Path) -> None:
    font = Font(cjk())
    assert font.covers("スーパー", column=True)
    row = ink("ー一", font, column=True)  # turned to the left: the bar runs along, the one across
    first = row[:, : row.shape[1] // 2]
    assert np.ptp(np.flatnonzero(first.any(0))) > np.ptp(np.flatnonzero(first.any(1)))


def test_a_font_that_cannot_turn_the_long_vowel_is_not_for_columns_with_it(tmp_path: Path) -> None:
    path = NOTO.parent / "vlgothic" / "VL-Gothic-Regular.ttf"
    if not path.is_file():
        pytest.skip("fonts-vlgothic is not installed")
    stripped = without_rules(path, tmp_path)
    assert stripped.covers("スーパー")
    assert not stripped.covers("スーパー", column=True)
    assert stripped.covers("東京都", column=True)


def test_without_raqm_a_word_that_needs_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    for words, settings in ((["हिन्दी"], {}), (["中国"], {"language": "ja"})):
        with pytest.raises(UserError, match="Raqm"):
            render_words(words, tmp_path / "crops", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "crops").exists()


def test_marks_beside_their_letters_are_met() -> None:
    path = NOTO.parent / "tlwg" / "TlwgMono.ttf"
    if not path.is_file():
        pytest.skip("fonts-tlwg-mono-ttf is not installed")
    assert Font(path).covers("กมล")
    assert not Font(path).covers("ที่นั่น")
    assert Font(noto("NotoSansThai")).covers("ที่นั่น")
