from __future__ import annotations

from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import UserError
from dptr.cache.text.charset import NAMED_CHARACTERS, Charset, names
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.text.embed_text import settle_charset
from dptr.trainer.evaluate import ReadImages, keep_predictions
from dptr.trainer.metrics import score_as_written
from dptr.trainer.model.recognizer import Prediction


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


LIGATURE = "ﬁn"  # NFKC makes "fin" of it


class Manifest:
    """What settling a charset needs of a store."""

    def __init__(self, **normalization: Any) -> None:
        self.identity: dict[str, Any] = {"normalization": Normalization(**normalization).identity()}

    def require_equal(self, folder: Path, identity: dict[str, Any]) -> None:
        assert {name: self.identity[name] for name in identity} == identity


@pytest.mark.parametrize("form", ["nfc", "none"])
def test_a_store_keeps_its_normal_form_with_its_charset_and_training_takes_it(form: Any, tmp_path: Path) -> None:
    manifest = Manifest(unicode=form)
    for _ in range(2):
        settle_charset(tmp_path, manifest, Charset("ﬁn"), learnt=False)  # type: ignore[arg-type]
    kept = Charset.from_text(manifest.identity["charset"])
    assert (kept.characters, kept.unicode) == ("ﬁn", form)
    Image.new("RGB", (24, 8)).save(tmp_path / "a.png")
    (tmp_path / "labels.tsv").write_text(f"a.png\t{LIGATURE}\n")
    for normalization in (Normalization.of(kept, max_label_length=25), Normalization.of(kept, max_label_length=1000)):
        images = WordImages.open([tmp_path], normalization.charset(kept), normalization)
        assert [sample.label for sample in images.samples] == [LIGATURE]
        assert not images.changed.total


def test_charsets_in_nfkc_are_written_as_before_and_others_say_their_form() -> None:
    assert Charset("ab").text == "ab"
    for charset in (Charset("ab", unicode="nfc"), Charset(("a", "n\u0308"), "grapheme", unicode="none")):
        assert Charset.from_text(charset.text) == charset
        assert charset.with_more(["c"]).unicode == charset.unicode
    assert Normalization(unicode="nfc").charset(Charset("ab")).unicode == "nfc"


def test_truths_and_predictions_are_compared_in_one_form(tmp_path: Path) -> None:
    read = ReadImages(["a", "b"], ["fin", LIGATURE], [Prediction(LIGATURE, 1.0, []), Prediction("fin", 1.0, [])])
    assert pq.read_table(keep_predictions(tmp_path, "nfkc", read))["correct"].to_pylist() == [True, True]
    assert score_as_written(read.ground_truths, ["fin", "fin"]).score.accuracy == 1.0  # type: ignore[union-attr]
    exact = ReadImages(read.keys, read.ground_truths, read.predictions, form=Normalization(unicode="nfc"))
    assert pq.read_table(keep_predictions(tmp_path, "nfc", exact))["correct"].to_pylist() == [False, False]
    scored = score_as_written(read.ground_truths, ["fin", "fin"], normalization=Normalization(unicode="nfc")).score
    assert scored is not None
    assert scored.accuracy == 0.5


THAI = "กนม\u0e33"  # the last is sara am, which NFKC writes as two


@pytest.mark.parametrize(
    ("named", "rules", "added"),
    [
        (THAI, Normalization(), "\u0e4d\u0e32"),
        (THAI, Normalization(unicode="nfc"), ""),
        ("中，Ａ", Normalization(), ",A"),
        ("abﬁ", Normalization(), "fi"),
        ("e´", Normalization(), "\u0301"),
        ("e´", Normalization(keep_spaces=True), "\u0301"),
        ("éa", Normalization(ascii=True), "e"),
        ("龍a", Normalization(simplified=True), "龙"),
        ("ab ", Normalization(), ""),
    ],
)
def test_what_labels_have_instead_of_a_character_stands_behind_the_charset(
    named: str, rules: Normalization, added: str
) -> None:
    charset = rules.charset(Charset(named))
    assert charset.characters == named + added
    assert charset.missing(rules.apply(named).replace(" ", "")) == ""
    assert rules.charset(charset) == charset


def test_a_cluster_that_normalisation_parts_adds_its_parts() -> None:
    charset = Normalization().charset(Charset(("กำ", "มี"), "grapheme"))
    assert charset.characters == ("กำ", "มี", "กํ", "า")
    assert Normalization().reject(Normalization().apply("มีกำ"), charset) is None


@pytest.mark.parametrize("form", ["nfkc", "nfc"])
@pytest.mark.parametrize("name", [*NAMED_CHARACTERS, *names()])
def test_a_charset_that_goes_by_name_can_write_its_own_labels(name: str, form: str) -> None:
    charset, rules = Charset.named(name), Normalization(unicode=form)  # type: ignore[arg-type]
    assert rules.added_to(charset) == []
    assert rules.charset(charset).same_units_as(charset), "stores and runs of it go on"
    normal = {part for unit in charset.characters for part in normalize(form.upper(), unit)}  # type: ignore[arg-type]
    assert normal <= set(charset.characters)


def test_what_was_added_is_said_and_what_was_begun_without_stays_so(capsys: pytest.CaptureFixture[str]) -> None:
    named, rules = Charset(THAI), Normalization()
    begun = Charset(THAI, order="logical")
    assert rules.charset(named, begun) is begun
    assert rules.charset(named, Charset("ab")).characters != THAI
    (line,) = capsys.readouterr().err.splitlines()
    assert "\u0e4d" in line
    assert "added to the charset" in line


def test_a_file_of_presentation_forms_writes_arabic(tmp_path: Path) -> None:
    (tmp_path / "forms.txt").write_text("ﺳﻼﻡ", encoding="utf-8")
    charset = Normalization().charset(Charset.named(str(tmp_path / "forms.txt")))
    assert charset.missing("سلام") == ""
    assert charset.order == "visual"
