from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dptr.cache.charset import Charset, Normalization
from dptr.cache.errors import UserError


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


def test_a_charset_file_keeps_its_order_and_drops_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("zy\nxy\n", encoding="utf-8")
    assert Charset.named(str(tmp_path / "letters.txt")).characters == "zyx"


def test_unknown_and_doubled_charsets_are_refused() -> None:
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


def test_refusals_say_why() -> None:
    charset, normalization = Charset.named("36"), Normalization(max_label_length=3)
    assert normalization.refuse("", charset) == "empty"
    assert normalization.refuse("abcd", charset) == "longer than 3 characters"
    assert normalization.refuse("aé", charset) == "not in the charset: é"
    assert normalization.refuse("abc", charset) is None


@pytest.mark.parametrize(
    ("characters", "expected"),
    [("0123abc", "open24"), ("ABC", "OPEN24"), ("abAB", "Open24"), ("0123", "Open24"), ("\u65e5\u672c", "Open24")],
)
def test_a_charset_of_one_case_folds_to_it(characters: str, expected: str) -> None:
    assert Charset(characters).fold_case("Open24") == expected
