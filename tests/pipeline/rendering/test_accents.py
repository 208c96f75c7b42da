"""Fonts whose letters with marks are other letters, plain ones or marks alone are not used for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from fontTools.ttLib import TTFont

from dptr.pipeline.rendering.fonts import Font, packaged_fonts, plainer_forms
from dptr.pipeline.rendering.shaping import table_of


def redrawn(tmp_path: Path, **drawn_as: str) -> Font:
    """A packaged font that draws some characters as others."""
    source = next(font for font in packaged_fonts().fonts if font.path.suffix == ".ttf" and font.covers("éñẩЩ"))
    font = TTFont(source.path)
    for table in font["cmap"].tables:
        if table.isUnicode():
            table.cmap.update({ord(one): table.cmap[ord(other)] for one, other in drawn_as.items()})
    path = tmp_path / "redrawn.ttf"
    font.save(path)
    return Font(path)


def test_what_has_fewer_marks() -> None:
    assert plainer_forms("ậ") == ["a", "ạ", "â"]
    assert plainer_forms("й") == ["и"]
    assert plainer_forms("が") == ["か"]
    assert plainer_forms("a") == plainer_forms("đ") == plainer_forms("क") == []


def test_hangul_syllables_and_arabic_letters_are_no_letters_with_marks() -> None:
    assert plainer_forms("한") == plainer_forms("가") == plainer_forms("ئ") == []


@pytest.mark.parametrize("drawn_as", ["e", "Щ", "\u00b4"], ids=["plain", "another letter", "a mark alone"])
def test_a_letter_that_is_drawn_as_something_else_is_not_the_fonts(tmp_path: Path, drawn_as: str) -> None:
    font = redrawn(tmp_path, é=drawn_as)
    assert not font.covers("née")
    assert font.covers("nee")
    assert font.covers("ño")


def test_a_letter_that_lacks_one_of_its_marks_is_not_the_fonts(tmp_path: Path) -> None:
    assert not redrawn(tmp_path, ẩ="â").covers("mẩu")
    assert not redrawn(tmp_path, ẩ="ả").covers("mẩu")


def test_fonts_that_draw_their_letters_keep_them() -> None:
    letters = "éñüçőěąảẩộữỹởЙёάώϊÁÖŠ"
    listed = [
        (font, letter)
        for font in packaged_fonts().fonts
        for letter in letters
        if table_of(str(font.path), font.index).get_nominal_glyph(ord(letter))
    ]
    assert len(listed) > 500
    assert [(font, letter) for font, letter in listed if not font.covers(letter)] == []
