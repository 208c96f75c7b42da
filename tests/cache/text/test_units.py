"""Charsets of grapheme clusters, of right-to-left scripts and by name; what is kept of them and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptr.cache.errors import UserError
from dptr.cache.text import reading_order
from dptr.cache.text.charset import Charset, clusters_within, names
from dptr.cache.text.normalization import Normalization
from dptr.cache.text.units import clusters

HINDI = Charset(("क्ष", "त्रि", "य", "की", "a"), "grapheme")
HEBREW, ARABIC = "אבגדה", "ابتثج"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("क्षत्रिय", ["क्ष", "त्रि", "य"]),
        ("กำกี่", ["กำ", "กี่"]),
        ("بَّيت", ["بَّ", "ي", "ت"]),
        ("👩‍👩‍👧x", ["👩‍👩‍👧", "x"]),
        ("plain", list("plain")),
    ],
)
def test_clusters_are_what_a_person_sees_as_one_character(text: str, seen: list[str]) -> None:
    assert clusters(text) == seen


def test_a_label_of_clusters_is_encoded_cluster_by_cluster() -> None:
    assert HINDI.encode("क्षत्रिय").tolist() == [1, 2, 3]
    assert HINDI.decode(np.array([1, 2, 3, 0, 4])) == "क्षत्रिय"
    assert HINDI.missing("क्षका") == "का"
    assert HINDI.length("क्षत्रिय") == 3
    assert HINDI.project("कीका य") == "कीय"


def test_the_longest_label_is_counted_in_units() -> None:
    assert Normalization(max_label_length=3).reject("क्षत्रिय", HINDI) is None
    assert Normalization(max_label_length=2).reject("क्षत्रिय", HINDI) == "longer than 2 characters"


@pytest.mark.parametrize(
    "charset",
    [
        Charset("abc"),
        Charset("# units"),
        HINDI,
        Charset((" ", "#", "a"), "grapheme"),
        Charset("אב"),
        Charset("אב", order="logical"),
        Charset(("بَّ", "ي"), "grapheme"),
    ],
)
def test_what_a_store_keeps_of_a_charset_gives_it_back(charset: Charset, tmp_path: Path) -> None:
    assert Charset.from_text(charset.text) == charset
    (tmp_path / "units.txt").write_text(charset.text, encoding="utf-8")
    read = Charset.named(str(tmp_path / "units.txt"))
    assert (read.characters, read.units) == (charset.characters, charset.units)


def test_a_charset_kept_by_an_earlier_version_emits_labels_as_they_are_written() -> None:
    kept = Charset.from_text("אבab")
    assert kept.order == "logical"
    assert kept.encode("אב").tolist() == [1, 2]
    assert kept.text == "אבab"


@pytest.mark.parametrize("line", ["कीय", "ab"])
def test_a_file_of_clusters_has_one_a_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "units.txt").write_text(f"# units: grapheme\nक\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"units\.txt: the charset has '.*', which is not one grapheme"):
        Charset.named(str(tmp_path / "units.txt"))


@pytest.mark.parametrize("units", ["codepoint", "grapheme"])
@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("שלום", "םולש"),
        ("אב12", "12בא"),
        ("12אב", "בא12"),
        ("(אב)", "(בא)"),
        ("أ12-34", "34-12أ"),
        ("ت٣٤", "٣٤ت"),
        ("אב abc דה", "הד abc בא"),
        ("ABC12", "ABC12"),
    ],
)
def test_a_right_to_left_label_is_emitted_as_it_is_seen_and_read_as_it_is_written(
    written: str, seen: str, units: str
) -> None:
    characters = "".join(sorted(set(written + "()")))
    charset = Charset(tuple(characters) if units == "grapheme" else characters, units)  # type: ignore[arg-type]
    ids = charset.encode(written)
    assert "".join(charset.characters[index - 1] for index in ids) == seen
    assert charset.decode(ids) == written


@settings(max_examples=300)
@given(
    st.one_of(
        *(st.text(letters + "0123" + marks, max_size=9) for letters in (HEBREW, ARABIC) for marks in ("", "-.,()\"'"))
    )
)
def test_words_of_a_right_to_left_script_come_back_from_the_order_in_which_they_are_seen(label: str) -> None:
    seen, _ = reading_order.seen(clusters(label))
    assert "".join(reading_order.written(seen)[0]) == label


@settings(max_examples=300)
@given(st.text(HEBREW + ARABIC + "ab12٣-.,( \u064e\u0651", max_size=9))
def test_whatever_is_seen_what_is_read_of_it_is_seen_so(label: str) -> None:
    seen, _ = reading_order.seen(clusters(label))
    assert reading_order.seen(reading_order.written(seen)[0])[0] == seen


def test_marks_stay_with_their_letter_and_places_follow_their_units() -> None:
    charset = Charset("بيتَّ12")
    ids = charset.encode("بَّيت12")
    text, places = charset.decode_with_places(ids)
    assert text == "بَّيت12"
    assert [charset.characters[ids[place] - 1] for place in places] == list(text)
    assert places == [4, 5, 6, 3, 2, 0, 1]


SCRIPTS = {"ar", "de", "el", "fr", "he", "hi", "ja", "ko", "latin", "ru", "th", "vi", "zh-hans", "zh-hant"}


def test_charsets_of_the_main_scripts_go_by_name() -> None:
    assert set(names()) == SCRIPTS


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_a_named_charset_begins_with_the_94_and_holds_nothing_that_prints_nothing(name: str) -> None:
    charset = Charset.named(name)
    assert "".join(charset.characters).startswith(Charset.named("94").text)
    assert not charset.missing("Exit 24/7".replace(" ", ""))
    assert charset.units == "codepoint"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ar", "مَدْرَسَة شارع٢٤"),
        ("de", "Straße Köln ÄÖÜ 5€"),
        ("el", "Οδός ΈΞΟΔΟΣ"),
        ("fr", "Hôtel «Où» œuvre"),
        ("he", "רחוב"),
        ("hi", "क्षत्रिय ज़रूर १२"),
        ("ja", "東京駅 カフェ さくら ～"),
        ("ko", "서울 커피 뷁"[:5]),
        ("latin", "Łódź çay İstanbul Đường žluťoučký"),
        ("ru", "Ёлка ВЫХОД"),
        ("th", "กรุงเทพฯ น้ำ"),
        ("vi", "Đường Nguyễn Huệ"),
        ("zh-hans", "出口 龙门 15元"),
        ("zh-hant", "龍門 臺灣 1500元"),
    ],
)
def test_common_words_of_a_language_fit_its_charset(name: str, words: str) -> None:
    assert Charset.named(name).missing(Normalization().apply(words)) == ""


def test_han_and_hangul_are_those_of_the_national_sets() -> None:
    def han(name: str, codec: str) -> int:
        characters = [c for c in Charset.named(name).characters if "\u4e00" <= c <= "\u9fff"]
        assert all(c.encode(codec) for c in characters)
        return len(characters)

    assert (han("zh-hans", "gb2312"), han("ja", "euc_jp")) == (6763, 6355)
    assert han("zh-hant", "big5") > 13_000
    assert sum("가" <= c <= "힣" for c in Charset.named("ko").characters) == 2350


def test_charsets_are_joined_by_a_plus(tmp_path: Path) -> None:
    joined = Charset.named("36+ru+space")
    assert joined.characters[:36] == Charset.named("36").characters
    assert not joined.missing("Ёлка 7")
    assert len(set(joined.characters)) == len(joined.characters)
    (tmp_path / "c++.txt").write_text("xy")
    assert Charset.named(str(tmp_path / "c++.txt")).characters == "xy"
    with pytest.raises(UserError, match="'xx'"):
        Charset.named("94+xx")


def test_clusters_within_a_charset_are_those_that_it_can_write() -> None:
    within = clusters_within("कीय\u200d", ["की", "का", "य", "x"])
    assert within == ("क", "की", "य")
