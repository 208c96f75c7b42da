"""The one printer of tables: aligned in any script, within a terminal, whole in a pipe."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata

import pytest

from dptr.cache.printing import table, table_lines


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> int:
    """A terminal of 40 columns."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((40, 20)))
    return 40


def columns_of(text: str) -> int:
    """Columns that a terminal takes for a text, by Unicode's own tables."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def test_nothing_is_cut_when_piped() -> None:
    text = table(["a", "long name"], [(1, "x" * 1000), (22, 0.123456789)])
    assert text.splitlines() == [" a  long name", "--  " + "-" * 1000, " 1  " + "x" * 1000, "22  0.123456789"]


def test_a_terminal_is_not_overrun_and_numbers_stay_whole(narrow: int) -> None:
    lines = table(["label", "n", "prompt"], [("x" * 50, 123456789, "y" * 50), ("short", 7, "z")]).splitlines()
    assert all(columns_of(line) <= narrow for line in lines)
    assert lines[2].count("…") == 2
    assert "123456789" in lines[2]
    assert table(["label"], [("x" * 50,)], fit=False).splitlines()[2] == "x" * 50


@pytest.mark.parametrize("label", ["日本語", "é", "e\u0301", "한국", "ｗｉｄｅ"])
def test_wide_and_combining_characters_align(label: str) -> None:
    _, _, odd, plain = table(["label", "n"], [(label, 1), ("plain label", 2)]).splitlines()
    assert columns_of(odd) == columns_of(plain)
    assert odd.startswith(label)


def test_wide_characters_are_cut_at_a_whole_one(narrow: int) -> None:
    lines = table(["label", "n"], [("日" * 30, 1), ("本" * 29, 2)]).splitlines()
    assert {columns_of(line) for line in lines[1:]} == {narrow}


def test_numbers_stand_to_the_right_and_texts_to_the_left() -> None:
    text = table(["n", "x", "text", "share"], [(1, None, "12", "5%"), (200, 2.5, "3", "99.5%")], numbers=(3,))
    assert text.splitlines()[2:] == ["  1  None  12       5%", "200   2.5  3     99.5%"]


def test_a_cell_is_one_line_that_no_terminal_obeys() -> None:
    *_, row = table(["label"], [("a\x1b[2J\nb\u2028",)]).splitlines()
    assert row == r"a\x1b[2J\nb\u2028"


def test_rows_of_later_blocks_are_not_cut_either() -> None:
    lines = list(table_lines(["a"], [[("x",)], [("longer",)]]))
    assert lines == ["a", "-", "x", "longer"]


def test_a_table_without_headings_or_rows() -> None:
    assert table([], [("1", "a"), ("20", "b")], numbers=(0,)) == " 1  a\n20  b"
    assert table(["a", "bc"], []).splitlines() == ["a  bc", "-  --"]
