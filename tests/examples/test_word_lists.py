"""Word lists of languages: what is kept, what is left out and counted, and what to install."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from dptr.cache.errors import UserError

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "word_lists.py"


def test_words_are_composed_distinct_and_of_the_script_and_each_other_one_is_counted() -> None:
    lists = runpy.run_path(str(PROGRAM))
    hangul = "\u1112\u1161\u11ab"  # one syllable by its three letters
    lists["SOURCES"]["ko"] = lambda: [hangul, "한", "abc", "", "글" * 13, "나라", "사람"]
    words, rejected = lists["word_list"]("ko", 2, 12)
    assert words == ["한", "나라"]
    assert rejected == {
        "twice": 1,
        "with other characters than the script's": 1,
        "empty": 1,
        "longer than 12 characters": 1,
        "rarer than the limit": 1,
    }


def test_marks_and_the_long_vowel_sign_of_kana_belong_to_their_scripts() -> None:
    lists = runpy.run_path(str(PROGRAM))
    lists["SOURCES"]["ja"] = lambda: ["スーパー", "時々", "ロシア語"]
    lists["SOURCES"]["hi"] = lambda: ["हिन्दी", "\u093fह"]
    assert lists["word_list"]("ja", 9, 12)[0] == ["スーパー", "時々", "ロシア語"]
    words, rejected = lists["word_list"]("hi", 9, 12)
    assert words == ["हिन्दी"]
    assert rejected == {"beginning with a mark": 1}


def test_the_dictionary_writes_the_words_and_frequencies_order_them() -> None:
    by_frequency = runpy.run_path(str(PROGRAM))["_by_frequency"]
    assert by_frequency(["Aal", "λόγος", "Haus"], ["haus", "λόγοσ"]) == ["Haus", "λόγος", "Aal"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = runpy.run_path(str(PROGRAM))
    with pytest.raises(UserError, match="pip install no_such_package"):
        lists["_packaged"]("no_such_package", "words.txt")
    with pytest.raises(UserError, match="apt-get install edict"):
        lists["_debian"]("edict", Path("/nowhere/edict"))
    monkeypatch.setitem(sys.modules, "wordfreq", None)
    with pytest.raises(UserError, match="pip install wordfreq"):
        lists["word_list"]("fr", 9, 12)
