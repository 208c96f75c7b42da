from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.text.lexicon import pack, read_word_counts, unpack, word_counts


def words_file(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "words.txt"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_word_counts_as_often_as_it_stands_or_as_is_said(tmp_path: Path) -> None:
    path = words_file(tmp_path, "\ufeffstreet\r\nStreet\n\nstreet\nhôtel\t2.5\nhôtel\n")
    assert read_word_counts(path) == {"street": 2, "Street": 1, "hôtel": 3.5}


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "holds no word"), ("a\nb\tmany", "line 2 of"), ("b\t0", "line 1 of"), ("b\tinf", "line 1 of")],
)
def test_what_is_no_list_of_words_is_told(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_word_counts(words_file(tmp_path, text))


def test_other_encodings_and_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not UTF-8 \(byte 2\)"):
        read_word_counts(words_file(tmp_path, "hôtel", "latin-1"))
    with pytest.raises(UserError, match="cannot be read"):
        read_word_counts(tmp_path / "nothing.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_word_counts(tmp_path)


def test_packed_counts_come_back_and_are_the_same_bytes_in_any_order() -> None:
    counts = {"street": 3.0, "hôtel": 0.5, "a": 1.0}
    assert unpack(pack(counts)) == counts
    assert pack(counts).tobytes() == pack(dict(reversed(counts.items()))).tobytes()


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: np.zeros_like(b), lambda b: b[:0]])
def test_damaged_counts_are_told(damage) -> None:
    with pytest.raises(DamagedStore, match="lexicon cannot be read"):
        unpack(damage(pack({"street": 3.0})))


@pytest.mark.parametrize(
    ("word", "count"), [("two\nlines", 1), ("a\tb", 1), ("\u2028", 1), ("", 1), ("a", 0), ("a", -2)]
)
def test_counts_that_a_file_could_not_hold_are_rejected(word: str, count: float) -> None:
    with pytest.raises(UserError, match="with the count"):
        word_counts({"street": 1, word: count})


def test_large_counts_come_back_exactly() -> None:
    counts = {"street": 1234567.0, "a": 0.1, "b": 1e-9}
    assert unpack(pack(word_counts(counts) or {})) == counts


def test_words_that_would_fill_the_memory_are_neither_kept_nor_read(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack({"street" * 1000: 1.0})
    monkeypatch.setattr("dptr.cache.text.lexicon._MOST_BYTES", 1000)
    with pytest.raises(UserError, match="a model's file keeps"):
        pack({"street" * 1000: 1.0})
    with pytest.raises(DamagedStore, match="larger than the limit"):
        unpack(packed)
