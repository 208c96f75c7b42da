"""A corpus gives the right labels with their counts, in an order that can be relied on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dptr.cache.errors import UserError
from dptr.cache.progress import set_quiet
from dptr.cache.rejections import Quarantine
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.text import corpus, corpus_files
from dptr.pipeline.text.corpus import CorpusSettings, case_variants, read_corpus

Read = Callable[..., Any]


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_counts_sources_and_order_of_first_occurrence(tmp_path: Path, read: Read) -> None:
    one = write(tmp_path / "one.txt", "the red door\nthe cat\n")
    two = write(tmp_path / "two.txt", "cat zebra\nape the")
    result = read(one, two, rows=4)
    # New in one line: by code point. Otherwise: where it occurs first.
    assert result.labels == ["door", "red", "the", "cat", "zebra", "ape"]
    assert result.counts == [1, 1, 3, 2, 1, 1]
    assert result.sources == ["one.txt"] * 4 + ["two.txt"] * 2
    assert (result.read, result.distinct, result.rejected) == (9, 6, [])
    assert result.batch_sizes == [4, 2]


def test_a_missing_file_is_told_before_any_work(tmp_path: Path, read: Read) -> None:
    good = write(tmp_path / "a.txt", "good")
    with pytest.raises(UserError, match=r"no such file: .*nowhere\.txt"):
        read(good, tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match="is a folder"):
        read(good, tmp_path)
    with pytest.raises(UserError, match="no charset called"):
        read(good, charset="95")
    with pytest.raises(UserError, match="no corpus"):
        read()


def test_a_pipe_is_rejected_and_not_waited_for(tmp_path: Path, read: Read) -> None:
    os.mkfifo(tmp_path / "words.txt")
    with pytest.raises(UserError, match=r"words\.txt is a pipe or a device, not a file\. Name - and give it on"):
        read(str(tmp_path / "words.txt"))


def test_a_corpus_without_a_usable_label_says_why(tmp_path: Path, read: Read) -> None:
    path = write(tmp_path / "a.txt", "café naïve caf\u00e9")
    with pytest.raises(
        UserError, match=r"no usable label .*not in the charset \(2\) \(such as 'café', 'naïve'\), empty file"
    ):
        read(path, write(tmp_path / "b.txt", ""))
    with pytest.raises(UserError, match="only blanks"):
        read(write(tmp_path / "c.txt", " \n\n\u3000"))
    with pytest.raises(UserError, match="no character occurs 9 times"):
        read(path, charset="auto", min_count=9)
    assert list(tmp_path.glob("temporary/*")) == []


def test_rejected_labels_are_told_once_with_their_first_place(tmp_path: Path, read: Read) -> None:
    one = write(tmp_path / "one.txt", "good\ncafé good\ncafé")
    two = write(tmp_path / "two.txt", "café " + "x" * 26)
    result = read(one, two)
    assert result.labels == ["good"]
    assert result.rejected == [
        ("one.txt", 2, "café", "not in the charset: é"),
        ("two.txt", 1, "x" * 26, "longer than 25 characters"),
    ]
    assert (result.read, result.distinct) == (6, 3)
    for part in ("6  words read", "3  distinct labels", "1  kept", "1  rejected: not in the charset (such as 'café')"):
        assert part in result.summary


def test_a_long_label_that_is_allowed_stays_whole(tmp_path: Path, read: Read) -> None:
    labels = ["x" * 299 + "y", "x" * 299 + "z"]
    result = read(write(tmp_path / "a.txt", "\n".join(labels)), normalization=Normalization(max_label_length=300))
    assert result.labels == labels


def test_a_label_that_normalisation_leaves_empty_is_rejected(tmp_path: Path, read: Read) -> None:
    result = read(write(tmp_path / "a.txt", "日本 good"), normalization=Normalization(ascii=True))
    assert result.labels == ["good"]
    assert [reason for *_, reason in result.rejected] == ["empty"]


def test_normalisation_joins_the_counts_of_spellings(tmp_path: Path, read: Read) -> None:
    path = write(tmp_path / "a.txt", "cafe\u0301\ncafé\n\uff43\uff41\uff46\u00e9 ｗｉｄｅ\u3000wide")
    result = read(path, charset="auto")
    assert result.labels == ["café", "wide"]
    assert result.counts == [3, 2]
    assert read(path, charset="auto", normalization=Normalization(unicode="none")).distinct == 5


def test_charset_learnt_from_the_corpus(tmp_path: Path, read: Read) -> None:
    path = write(tmp_path / "a.txt", "ba ba ab\x07 ab\x07 bé é\ni\u200cb i\u200cb " + "z" * 26)
    result = read(path, charset="auto", min_count=2)
    # By code point; neither the bell, nor what is rare, nor what only a too long label has.
    assert result.charset == "abié\u200c"
    assert result.labels == ["ba", "bé", "é", "i\u200cb"]
    assert {reason for *_, reason in result.rejected} == {"not in the charset: U+0007", "longer than 25 characters"}
    rare = read(path, charset="auto", min_count=3)
    assert rare.charset == "ab"


def test_a_charset_that_a_store_was_begun_with(tmp_path: Path, read: Read) -> None:
    characters = "".join(map(chr, range(0x4E00, 0x9000))) + "-]^\\a"
    result = read(write(tmp_path / "a.txt", "一丁 -]^\\ b a"), charset=Charset(characters))
    assert result.labels == ["-]^\\", "a", "一丁"]
    assert result.charset == characters


def test_case(tmp_path: Path, read: Read) -> None:
    path = write(tmp_path / "a.txt", "Street STREET street ÉTÉ été")
    assert read(path, charset="auto").distinct == 5
    folded = read(path, charset="auto", case="lower")
    assert (folded.labels, folded.counts, folded.charset) == (["street", "été"], [3, 2], "erst\u00e9")
    varied = read(path, charset="auto", case="upper-lower-title")
    assert varied.labels == ["street", "été"]
    assert varied.charset == "ERSTerst\u00c9\u00e9"


def test_case_variants() -> None:
    assert case_variants("street", "upper-lower-title") == ["STREET", "street", "Street"]
    assert case_variants("don't", "upper-lower-title") == ["DON'T", "don't", "Don't"]
    assert case_variants("new york", "upper-lower-title") == ["NEW YORK", "new york", "New York"]
    assert case_variants("a", "upper-lower-title") == ["A", "a"]
    assert case_variants("42", "upper-lower-title") == ["42"]
    assert case_variants("Street", "keep") == ["Street"]


def test_the_result_does_not_depend_on_blocks(tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    words = [f"w{number}" if number % 7 else f"é{number}" for number in rng.zipf(1.3, 20_000).tolist()]
    lines = [" ".join(words[start : start + 9]) for start in range(0, len(words), 9)]
    path = write(tmp_path / "a.txt", "\r\n".join(lines))
    whole = read(path)
    monkeypatch.setattr(corpus_files, "BLOCK_BYTES", 997)
    monkeypatch.setattr(corpus_files, "_PIECE_BYTES", 101)
    monkeypatch.setattr(corpus, "_ROWS_BUFFERED", 50)
    parts = read(path, rows=7)
    assert parts.labels == whole.labels
    assert parts.counts == whole.counts
    assert parts.rejected == whole.rejected
    assert dict(zip(whole.labels, whole.counts, strict=True)) == {
        word: count for word, count in Counter(words).items() if word[0] == "w"
    }


def _catalogue(path: Path, labels: list[str]) -> Path:
    pq.write_table(pa.table({"id": range(len(labels)), "label": pa.array(labels, pa.string())}), path)
    return path


def test_going_on_gives_the_same_labels_in_the_same_batches(tmp_path: Path, read: Read) -> None:
    path = write(tmp_path / "a.txt", "\n".join(f"w{number * 7919 % 1000}" for number in range(3000)))
    whole = read(path, rows=300)
    done = [_catalogue(tmp_path / f"part-{part}.parquet", whole.labels[part * 300 :][:300]) for part in range(2)]
    rest = read(path, rows=300, known=done)
    assert rest.labels == whole.labels[600:]
    assert rest.counts == whole.counts[600:]
    assert rest.batch_sizes == [300, 100]
    assert read(path, known=[_catalogue(tmp_path / "all.parquet", whole.labels)]).labels == []


def test_a_grown_corpus_has_only_what_is_new(tmp_path: Path, read: Read) -> None:
    one = write(tmp_path / "one.txt", "red door cat")
    known = [_catalogue(tmp_path / "known.parquet", read(one).labels)]
    zero, two = write(tmp_path / "zero.txt", "ape red"), write(tmp_path / "two.txt", "door zebra ape")
    grown = read(zero, one, two, known=known)
    assert grown.labels == ["ape", "zebra"]
    assert grown.counts == [2, 1]


def test_variants_in_a_catalogue_are_known_by_their_label(tmp_path: Path, read: Read) -> None:
    path = write(tmp_path / "a.txt", "red door")
    known = [_catalogue(tmp_path / "known.parquet", ["RED", "Red"])]
    assert read(path, known=known, case="upper-lower-title").labels == ["door"]
    assert read(path, known=known).labels == ["door", "red"]


def test_two_corpora_read_at_once_do_not_meet(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, name) for name in ("red", "door")]
    with Quarantine(tmp_path / "quarantine.parquet") as quarantine:
        corpora = [read_corpus([str(path)], CorpusSettings(), quarantine) for path in paths]
        labels = [[label for batch in corpus.batches(9) for label in batch.labels] for corpus in corpora]
        for corpus in corpora:
            corpus.close()
    assert labels == [["red"], ["door"]]


@pytest.mark.parametrize(("charset", "kept"), [("36", ["open", "exit"]), (Charset("EINOPTX"), ["OPEN", "EXIT"])])
def test_a_charset_of_one_case_folds_case_and_says_how_often(
    charset: Any, kept: list[str], tmp_path: Path, read: Read
) -> None:
    result = read(write(tmp_path / "a.txt", "Open\nEXIT open\n"), charset=charset)
    assert (result.labels, result.counts, result.rejected) == (kept, [2, 1], [])
    assert "2  had their case folded" in result.summary


def test_a_line_with_a_space_is_rejected_by_name_and_the_space_is_offered(
    tmp_path: Path, read: Read, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.txt", "red door\nstreet\ncaf\u00e9 bar")
    set_quiet(False)
    lines = {"unit": "line", "normalization": Normalization(keep_spaces=True)}
    result = read(path, **lines)
    assert [reason for *_, reason in result.rejected] == [
        "not in the charset: space",
        "not in the charset: \u00e9, space",
    ]
    assert "--charset 94+space" in capfd.readouterr().err
    assert read(path, **lines, charset="94+space").labels == ["red door", "street"]
    assert "+space" not in capfd.readouterr().err
