"""A charset meets normalisation: what labels have instead of its units joins it, and nothing of it moves."""

from __future__ import annotations

from pathlib import Path
from unicodedata import normalize

import pytest

from dptr.cache.text.charset import Charset
from dptr.cache.text.named_charsets import NAMED_CHARACTERS, names
from dptr.cache.text.normalization import Normalization

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
