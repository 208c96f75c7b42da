from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptr.cache.errors import UserError
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization


@pytest.mark.parametrize(("name", "size"), [("36", 36), ("62", 62), ("94", 94)])
def test_named_charsets_have_the_size_of_their_name(name: str, size: int) -> None:
    assert len(Charset.named(name).characters) == size


@given(st.text(alphabet=Charset.named("94").characters, max_size=30))
def test_decoding_what_was_encoded(label: str) -> None:
    charset = Charset.named("94")
    ids = np.append(charset.encode(label), [charset.end, 5, charset.padding])
    assert charset.decode(ids) == label


def test_special_ids_are_apart() -> None:
    charset = Charset("ab")
    assert charset.encode("ab").tolist() == [1, 2]
    assert (charset.end, charset.begin, charset.padding, charset.classes) == (0, 3, 4, 3)


def test_encoding_names_what_is_missing() -> None:
    with pytest.raises(UserError, match="'é'"):
        Charset.named("36").encode("café")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_charset_file_keeps_its_order_and_drops_line_breaks_and_a_byte_order_mark(tmp_path: Path, mark: str) -> None:
    (tmp_path / "letters.txt").write_text(mark + "zy\nx\r\n", encoding="utf-8")
    assert Charset.named(str(tmp_path / "letters.txt")).characters == "zyx"


def test_unknown_and_doubled_charsets_are_rejected() -> None:
    with pytest.raises(UserError, match="37"):
        Charset.named("37")
    with pytest.raises(UserError, match="more than once"):
        Charset("aba")


@pytest.mark.parametrize(
    ("name", "text", "expected"), [("36", "Don't!", "dont"), ("62", "Don't!", "Dont"), ("94", "Don't é", "Don't")]
)
def test_projection_follows_the_protocols(name: str, text: str, expected: str) -> None:
    assert Charset.named(name).project(text) == expected


@pytest.mark.parametrize(
    ("normalization", "raw", "expected"),
    [
        (Normalization(), " ﬁne  day ", "fineday"),
        (Normalization(keep_spaces=True), " fine \t day ", "fine day"),
        (Normalization(ascii=True), "Zürich", "Zurich"),
        (Normalization(unicode="none"), "ﬁne", "ﬁne"),
        (Normalization(unicode="nfc"), "Zu\u0308rich", "Zürich"),
    ],
)
def test_normalization(normalization: Normalization, raw: str, expected: str) -> None:
    assert normalization.apply(raw) == expected


def test_rejections_say_why() -> None:
    charset, normalization = Charset.named("36"), Normalization(max_label_length=3)
    assert normalization.reject("", charset) == "empty"
    assert normalization.reject("abcd", charset) == "longer than 3 characters"
    assert normalization.reject("aé", charset) == "not in the charset: é"
    assert normalization.reject("abc", charset) is None


@pytest.mark.parametrize(
    ("characters", "expected"),
    [("0123abc", "open24"), ("ABC", "OPEN24"), ("abAB", "Open24"), ("0123", "Open24"), ("\u65e5\u672c", "Open24")],
)
def test_a_charset_of_one_case_folds_to_it(characters: str, expected: str) -> None:
    assert Charset(characters).fold_case("Open24") == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"caf\xe9", r"letters\.txt is not UTF-8 \(byte 4\)"),
        ("abc".encode("utf-16"), r"letters\.txt is not UTF-8"),
        (b"", r"letters\.txt: the charset is empty"),
        (b"\r\n", r"letters\.txt: the charset is empty"),
        (b"\xef\xbb\xbf", r"letters\.txt: the charset is empty"),
        (b"abcab", r"letters\.txt: the charset names 'ab' more than once"),
        (b"ab\tc", r"letters\.txt has U\+0009"),
        (b"ab\0c", r"letters\.txt has U\+0000"),
    ],
)
def test_a_bad_charset_file_is_told_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "letters.txt").write_bytes(content)
    with pytest.raises(UserError, match=says) as raised:
        Charset.named(str(tmp_path / "letters.txt"))
    assert "\n" not in str(raised.value)


def test_the_space_can_be_added_to_any_charset(tmp_path: Path) -> None:
    assert Charset.named("36+space").characters == Charset.named("36").characters + " "
    (tmp_path / "letters.txt").write_text("ab")
    assert Charset.named(f"{tmp_path / 'letters.txt'}+space").characters == "ab "


def test_traditional_chinese_is_folded_where_asked_for_and_the_identity_says_so() -> None:
    assert Normalization(simplified=True).apply("龍門 客棧") == "龙门客栈"
    assert Normalization().apply("龍門") == "龍門"
    assert Normalization(simplified=True).identity()["simplified"] is True
    assert Normalization(**Normalization(ascii=True).identity()) == Normalization(ascii=True)
