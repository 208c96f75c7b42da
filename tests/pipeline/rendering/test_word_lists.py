"""Words and photos that rendering is fed with; what is already on the disk stays as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fontTools.ttLib import TTFont

from dptr.cache.errors import UserError
from dptr.cli import run_command
from dptr.pipeline.rendering.fonts import Font, packaged_fonts, plainer_forms
from dptr.pipeline.rendering.shaping import table_of
from dptr.pipeline.rendering.word_lists import photo_paths, read_words

RENDER = "import sys, dptr.cli; dptr.cli.run_command(sys.argv[1:])"


def render(folder: Path, words: str, out: str) -> subprocess.Popen[bytes]:
    (folder / f"{out}.txt").write_text(words, encoding="utf-8")
    command = ["render-words", f"{out}.txt", "-o", out, "--workspace", "."]
    return subprocess.Popen([sys.executable, "-c", RENDER, *command], cwd=folder, stderr=subprocess.PIPE)


def test_rendering_leaves_a_folder_called_corpus_alone_and_two_renders_do_not_meet(tmp_path: Path) -> None:
    pytest.importorskip("font_roboto")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "mine.txt").write_text("years of work")
    runs = [render(tmp_path, "street\ndoor\n", "one"), render(tmp_path, "Exit\nOpen\nShop\n", "two")]
    for run in runs:
        _, said = run.communicate(timeout=120)
        assert run.returncode == 0, said
    assert (tmp_path / "corpus" / "mine.txt").read_text() == "years of work"
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "one", "one.txt", "two", "two.txt"}
    labels = [line.split("\t")[1] for line in (tmp_path / "two" / "labels.tsv").read_text().splitlines()]
    assert sorted(labels) == ["Exit", "Open", "Shop"]


def test_words_come_by_first_occurrence_in_any_script(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes("hôtel Exit\nExit 出口 ".encode() + b"caf\xe9")
    assert read_words([str(tmp_path / "words.txt")]) == ["Exit", "hôtel", "出口"]


def test_a_word_list_without_words_says_why(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"no usable label .*invalid UTF-8 \(1\)") as raised:
        read_words([str(tmp_path / "words.txt")])
    assert ".parquet" not in str(raised.value)


def test_a_folder_without_photos_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no photo"):
        photo_paths(tmp_path)


def test_lines_are_labels_with_their_spaces(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("New York\n\n  Gare du  Nord \nNew York\nExit\n", encoding="utf-8")
    (tmp_path / "lines.csv").write_text('city,label\nx,"Rue, 42"\n', encoding="utf-8")
    files = [str(tmp_path / name) for name in ("lines.txt", "lines.csv")]
    assert read_words(files, "line") == ["New York", "Gare du Nord", "Exit", "Rue, 42"]


@pytest.mark.slow
def test_rendered_lines_keep_their_spaces_in_labels(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("New York\nExit\n", encoding="utf-8")
    pytest.importorskip("font_roboto")
    assert (
        run_command(["render-words", str(tmp_path / "lines.txt"), "--unit", "line", "-o", str(tmp_path / "crops")]) == 0
    )
    labels = (tmp_path / "crops" / "labels.tsv").read_text(encoding="utf-8").splitlines()
    assert sorted(line.partition("\t")[2] for line in labels) == ["Exit", "New York"]


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
