"""Every kind of file gives the same labels, and every bad input costs itself only and is named with its place."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from dptr.cache.errors import UserError
from dptr.cache.rejections import Quarantine
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.text import corpus_files
from dptr.pipeline.text.corpus import CorpusSettings, read_corpus


@dataclass
class Result:
    """What came out of files, with file names in place of paths."""

    labels: list[str]
    counts: list[int]
    sources: list[str]
    rejected: list[tuple[str, int | None, str, str]]
    charset: str


Read = Callable[..., Result]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def run(*paths: Path | str, **chosen: Any) -> Result:
        quarantine_path = tmp_path / "quarantine.parquet"
        with (
            Quarantine(quarantine_path) as quarantine,
            read_corpus([str(path) for path in paths], CorpusSettings(**chosen), quarantine) as corpus,
        ):
            [batch] = corpus.batches(100_000)
        rejected = pq.read_table(quarantine_path).to_pylist()
        return Result(
            batch.labels,
            batch.counts.tolist(),
            batch.sources,
            [(Path(row["source"]).name, row["line"], row["item"], row["reason"]) for row in rejected],
            "".join(corpus.charset.characters),
        )

    return run


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


LINES = ["red door", "street", "street", "42"]


def _lmdb(path: Path) -> None:
    with lmdb.open(str(path), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"num-samples", str(len(LINES)).encode())
        for number, line in enumerate(LINES, 1):
            transaction.put(b"label-%09d" % number, line.encode())


def _jsonl() -> bytes:
    values = [*LINES[:-1], 42]
    return b"".join(json.dumps({"id": 0, "words": value}).encode() + b"\n" for value in values)


TEXT = "\n".join(LINES).encode()
WRITERS: dict[str, Callable[[Path], object]] = {
    "a.txt": lambda path: path.write_bytes(TEXT),
    "a": lambda path: path.write_bytes(TEXT),
    "a.txt.gz": lambda path: path.write_bytes(gzip.compress(TEXT)),
    "two_streams.gz": lambda path: path.write_bytes(gzip.compress(TEXT[:5]) + gzip.compress(TEXT[5:])),
    "a.bz2": lambda path: path.write_bytes(bz2.compress(TEXT)),
    "a.xz": lambda path: path.write_bytes(lzma.compress(TEXT)),
    "a.ZST": lambda path: path.write_bytes(zstandard.compress(TEXT)),
    "two_frames.zst": lambda path: path.write_bytes(zstandard.compress(TEXT[:5]) + zstandard.compress(TEXT[5:])),
    "a.jsonl": lambda path: path.write_bytes(_jsonl()),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(_jsonl())),
    "a.parquet": lambda path: pq.write_table(pa.table({"id": [0] * 4, "words": LINES}), path),
    "bytes.parquet": lambda path: pq.write_table(pa.table({"words": [line.encode() for line in LINES]}), path),
    "dictionary.parquet": lambda path: pq.write_table(pa.table({"words": pa.array(LINES).dictionary_encode()}), path),
    "a.lmdb": _lmdb,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same(tmp_path: Path, read: Read, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    words = read(path, column="words")
    assert dict(zip(words.labels, words.counts, strict=True)) == {"door": 1, "red": 1, "street": 2, "42": 1}
    assert words.rejected == []
    lines = read(path, column="words", unit="line", normalization=Normalization(keep_spaces=True), charset="auto")
    assert lines.labels == ["red door", "street", "42"]
    assert lines.counts == [1, 2, 1]


def test_standard_input(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"red door\nred")))
    result = read("-")
    assert result.labels == ["door", "red"]
    assert result.sources == ["-", "-"]


def test_invalid_utf8_costs_the_word_and_not_the_file(tmp_path: Path, read: Read) -> None:
    path = write(tmp_path / "a.txt", b"one\ntwo caf\xe9 three\nfour")
    result = read(path)
    assert result.labels == ["one", "three", "two", "four"]
    assert result.rejected == [("a.txt", 2, "caf\\xe9", "invalid UTF-8")]


def test_nul_byte(tmp_path: Path, read: Read) -> None:
    result = read(write(tmp_path / "a.txt", b"one\nt\x00wo\nthree"))
    assert result.labels == ["one", "three"]
    assert result.rejected == [("a.txt", 2, "t\0wo", "NUL byte")]


@pytest.mark.parametrize("unit", ["word", "line"])
def test_byte_order_mark_and_crlf_are_no_part_of_a_label(tmp_path: Path, read: Read, unit: str) -> None:
    result = read(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n"), unit=unit, charset="auto")
    assert result.labels == ["one", "two", "three"]
    assert result.rejected == []
    assert result.charset == "ehnortw"


def test_utf16_is_rejected_as_such(tmp_path: Path, read: Read) -> None:
    path = write(tmp_path / "a.txt", "one two".encode("utf-16"))
    result = read(path, write(tmp_path / "b.txt", "good"))
    assert result.labels == ["good"]
    assert result.rejected == [("a.txt", None, "", "UTF-16 where UTF-8 is expected")]


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF, not text: save its text as .txt"),
        (b"PK\x03\x04", "a zip file or an office document, not text: save its text as .txt"),
        (b"\x89PNG\r\n\x1a\n", "a picture, not text"),
        (b"\xff\xd8\xff\xe0", "a picture, not text"),
    ],
)
def test_what_is_no_text_gives_no_words(tmp_path: Path, read: Read, start: bytes, reason: str) -> None:
    result = read(write(tmp_path / "a.txt", start + b"endobj stream"), write(tmp_path / "b.txt", "good"))
    assert result.labels == ["good"]
    assert result.rejected == [("a.txt", None, "", reason)]


@pytest.mark.parametrize("suffix", ["txt", "gz"])
def test_a_line_of_50_megabytes(tmp_path: Path, read: Read, suffix: str) -> None:
    content = b"one\n" + b"x" * 50_000_000 + b"\ntwo \xff\nthree"
    path = write(tmp_path / f"a.{suffix}", gzip.compress(content, 1) if suffix == "gz" else content)
    result = read(path)
    assert result.labels == ["one", "two", "three"]
    assert [(line, reason) for _, line, _, reason in result.rejected] == [
        (2, "longer than 1,000,000 bytes"),
        (3, "invalid UTF-8"),
    ]


def test_words_in_a_line_longer_than_a_block_are_used(
    tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_files, "BLOCK_BYTES", 64)
    monkeypatch.setattr(corpus_files, "_PIECE_BYTES", 50)
    result = read(write(tmp_path / "a.txt", "word other " * 100 + "\nlast caf\u00e9"))
    assert dict(zip(result.labels, result.counts, strict=True)) == {"other": 100, "word": 100, "last": 1}
    assert result.rejected == [("a.txt", 2, "café", "not in the charset: é")]


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstandard.compress,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_file_cut_short_gives_what_stands_before_the_cut(tmp_path: Path, read: Read, suffix: str) -> None:
    rng = np.random.default_rng(0)
    words = [f"{number:x}" for number in rng.integers(1 << 40, 1 << 60, 60_000).tolist()]
    whole = COMPRESS[suffix]("\n".join(words).encode())
    cut = write(tmp_path / f"cut.{suffix}", whole[: len(whole) * 3 // 4])
    result = read(cut, write(tmp_path / "b.txt", "good"))
    *before, last = result.labels
    assert last == "good"
    assert before == words[: len(before)]
    # xz and bz2 give whole blocks only, and here one block may be all there is.
    assert len(before) > (30_000 if suffix in ("gz", "zst") else -1)
    [(source, line, _, reason)] = result.rejected
    assert (source, line) == (f"cut.{suffix}", len(before) + 1)
    assert reason.startswith("damaged or cut short from here on: ")
    assert "stream" in reason


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, read: Read, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", "plain text after all")
    result = read(path, write(tmp_path / "b.txt", "good"))
    assert result.labels == ["good"]
    [(source, line, _, reason)] = result.rejected
    assert (source, line) == (path.name, 1)
    assert reason.startswith("damaged or cut short from here on: ")


@pytest.mark.parametrize("name", ["a.txt", "a.gz", "a.zst", "a.jsonl"])
def test_empty_file(tmp_path: Path, read: Read, name: str) -> None:
    result = read(write(tmp_path / name, b""), write(tmp_path / "b.txt", "good"))
    assert result.labels == ["good"]
    assert result.rejected == [(name, None, "", "empty file")]


def test_parquet_without_the_column_or_without_text(tmp_path: Path, read: Read) -> None:
    pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), tmp_path / "other.parquet")
    pq.write_table(pa.table({"text": [["x"], ["y"]]}), tmp_path / "nested.parquet")
    pq.write_table(pa.table({"text": ["x", None, "y"]}), tmp_path / "null.parquet")
    result = read(*(tmp_path / f"{name}.parquet" for name in ("other", "nested", "null")))
    assert result.labels == ["x", "y"]
    assert [(source, line, reason) for source, line, _, reason in result.rejected] == [
        ("other.parquet", None, "no column of text: it has a, b; name one with --column"),
        (
            "nested.parquet",
            None,
            f"column 'text' holds no text: it is {pa.list_(pa.string())}".replace("item", "element"),
        ),
        ("null.parquet", 2, "column 'text' holds no text"),
    ]


def test_damaged_parquet(tmp_path: Path, read: Read) -> None:
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "a.parquet")
    write(tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes()[:-20])
    result = read(tmp_path / "a.parquet", write(tmp_path / "b.txt", "good"))
    assert result.labels == ["good"]
    [(source, line, _, reason)] = result.rejected
    assert (source, line) == ("a.parquet", 1)
    assert reason.startswith("damaged")


def test_bad_lines_of_jsonl(tmp_path: Path, read: Read) -> None:
    lines = [
        b'{"text": "one"}',
        b"{oops",
        b'{"other": 1}',
        b'{"text": null}',
        b"[]",
        b'"caf\xe9"',
        b'{"text": "\\ud800"}',
        b'{"text": true}',
    ]
    result = read(write(tmp_path / "a.jsonl", b"\n".join([*lines, b"", b'{"text": "two"}'])))
    assert result.labels == ["one", "two"]
    found = {line: reason.split(":")[0] for _, line, _, reason in result.rejected}
    assert found == {
        2: "not JSON",
        3: "no column of text",
        4: "column 'text' holds no text",
        5: "no JSON object",
        6: "invalid UTF-8",
        7: "invalid UTF-8",
        8: "column 'text' holds no text",
    }


def test_lmdb_that_lacks_labels(tmp_path: Path, read: Read) -> None:
    with lmdb.open(str(tmp_path / "a"), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"num-samples", b"2")
        transaction.put(b"label-000000002", b"two")
    result = read(tmp_path / "a")
    assert result.labels == ["two"]
    assert result.rejected == [("a", 1, "label-000000001", "no such key")]


@pytest.mark.parametrize("count", [b"9999999999999", b"-1", b"many"])
def test_an_lmdb_with_an_unbelievable_number_of_labels_is_rejected_at_once(
    tmp_path: Path, read: Read, count: bytes
) -> None:
    with lmdb.open(str(tmp_path / "a"), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"num-samples", count)
        transaction.put(b"label-000000001", b"one")
    result = read(tmp_path / "a", write(tmp_path / "b.txt", "good"))
    assert result.labels == ["good"]
    assert [(source, reason.split(":")[0]) for source, _, _, reason in result.rejected] == [("a", "damaged LMDB")]


def test_half_an_lmdb_does_not_kill_the_process(tmp_path: Path, read: Read) -> None:
    with lmdb.open(str(tmp_path / "a"), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"num-samples", b"4000")
        for number in range(1, 4001):
            transaction.put(b"label-%09d" % number, b"word" * 100)
    data = tmp_path / "a" / "data.mdb"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    result = read(tmp_path / "a", write(tmp_path / "b.txt", "good"))
    assert result.labels == ["good"]
    assert [reason.split(":")[0] for *_, reason in result.rejected] == ["damaged LMDB"]


def test_the_column_of_a_table_that_its_header_names(tmp_path: Path, read: Read) -> None:
    tables = {
        "a.csv": 'id,Text,source\n1,red door,web\n2,"street, 42",web\n',
        "b.tsv": 'word\tcount\nexit\t7\n"open\t5\n',
        "c.csv": "\ufefflabel;path\r\nstop;a.png\r\n",
        "d.csv.gz": "text,label\nhall,0\n",
    }
    paths = [tmp_path / name for name in tables]
    for path in paths:
        content = tables[path.name].encode()
        write(path, gzip.compress(content) if path.suffix == ".gz" else content)
    result = read(*paths)
    assert result.labels == ["door", "red", "42", "street,", "exit", '"open', "stop", "hall"]
    assert result.rejected == []
    assert read(tmp_path / "a.csv", column="source").labels == ["web"]


def test_a_table_whose_header_names_no_text_is_rejected_with_that_line(tmp_path: Path, read: Read) -> None:
    result = read(write(tmp_path / "a.csv", "city,people\nRome,3\n"), write(tmp_path / "b.txt", "good"))
    assert result.labels == ["good"]
    [(source, line, item, reason)] = result.rejected
    assert (source, line, item) == ("a.csv", 1, "city,people")
    assert reason.endswith("name one with --column")
    with pytest.raises(UserError, match=r"no column of text .*such as 'city,people'.* Name the column with --column"):
        read(tmp_path / "a.csv")


def test_bad_rows_of_a_table(tmp_path: Path, read: Read) -> None:
    rows = ["id,text", "1,one", "2,t,wo", "3", "", '4,"three', 'four"', "5,caf\xe9", "6,six"]
    result = read(write(tmp_path / "a.csv", "\n".join(rows).encode("latin-1")))
    assert result.labels == ["one", "four", "three", "six"]
    assert [(line, reason.split(":")[0]) for _, line, _, reason in result.rejected] == [
        (3, "not as many columns as the header"),
        (4, "not as many columns as the header"),
        (8, "invalid UTF-8"),
    ]


@pytest.mark.parametrize("line", ["crops/1.png\tstreet", 'img_1.JPG, "street"'])
@pytest.mark.parametrize("name", ["rec_gt.txt", "labels.tsv"])
def test_lists_of_labelled_crops_are_no_text(tmp_path: Path, read: Read, line: str, name: str) -> None:
    path = write(tmp_path / name, line + "\nb" + line)
    result = read(path, write(tmp_path / "b.txt", "good"))
    assert result.labels == ["good"]
    assert result.rejected == [(name, 1, line, "image files with labels, not text: keep the labels alone")]


@pytest.mark.parametrize("compress", [*COMPRESS.values(), lambda _: b"PAR1"])
def test_compressed_files_by_another_name_are_no_text(
    tmp_path: Path, read: Read, compress: Callable[[bytes], bytes]
) -> None:
    result = read(write(tmp_path / "a.txt", compress(b"word " * 99)), write(tmp_path / "b.txt", "good"))
    assert result.labels == ["good"]
    assert [line for _, line, _, _ in result.rejected] == [None]


def test_text_of_every_type_of_parquet(tmp_path: Path, read: Read) -> None:
    for kind in (pa.string_view(), pa.large_string(), pa.large_binary(), pa.binary_view()):
        pq.write_table(pa.table({"text": pa.array(["door", "exit"]).cast(kind)}), tmp_path / "a.parquet")
        result = read(tmp_path / "a.parquet")
        assert (result.labels, result.rejected) == (["door", "exit"], [])


BOMB = b"w" * (1 << 20)


def _xz_bomb_of_a_wide_window(path: Path) -> None:
    """Write a header that claims a window of 1.5 GiB, which a decompressor fills as it goes."""
    whole = bytearray(_repeated(lzma.LZMACompressor(preset=0), 200))
    size = (whole[12] + 1) * 4
    whole[12 + whole[12:].index(0x21) + 2] = 37
    whole[12 + size - 4 : 12 + size] = zlib.crc32(whole[12 : 12 + size - 4]).to_bytes(4, "little")
    path.write_bytes(whole)


def _repeated(compressor: Any, megabytes: int) -> bytes:
    return b"".join([*(compressor.compress(BOMB) for _ in range(megabytes)), compressor.flush()])


def _parquet_bomb(path: Path) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 500, pa.int32()), pa.array([BOMB.decode()]))
    pq.write_table(pa.table({"text": column}), path, compression="zstd")


BOMBS: dict[str, Callable[[Path], object]] = {
    "a.txt.bz2": lambda path: path.write_bytes(_repeated(bz2.BZ2Compressor(), 500)),
    "a.txt.zst": lambda path: path.write_bytes(_repeated(zstandard.ZstdCompressor().compressobj(), 500)),
    "a.txt.xz": lambda path: path.write_bytes(_repeated(lzma.LZMACompressor(preset=0), 500)),
    "window.xz": _xz_bomb_of_a_wide_window,
    "a.csv.zst": lambda path: path.write_bytes(
        zstandard.compress(b"text\n") + _repeated(zstandard.ZstdCompressor().compressobj(), 500)
    ),
    "repeated.parquet": _parquet_bomb,
}
_MEASURE = """
import resource, sys
from dptr.cli import run_command
import dptr.pipeline.text.embed_text, torch, transformers
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = run_command(["embed-text", *sys.argv[2:], "-o", sys.argv[1], "--dry-run"])
print(code, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_rejected_within_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    BOMBS[name](path)
    assert path.stat().st_size < 2_000_000
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "prompts"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, megabytes = done.stdout.split()[-2:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert code == "2"
    assert len(errors) == 1
    assert "no usable label" in errors[0]
    assert int(megabytes) < 250, megabytes


def test_an_item_is_rejected_by_its_own_length_wherever_blocks_end(
    tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.txt", "one " + "x" * 1_000_001 + "\ntwo\n" + "y" * 1_000_000)
    whole = read(path)
    assert whole.labels == ["one", "two"]
    assert [(line, reason) for _, line, _, reason in whole.rejected] == [
        (1, "longer than 1,000,000 bytes"),
        (3, "longer than 25 characters"),
    ]
    monkeypatch.setattr(corpus_files, "_PIECE_BYTES", 333)
    assert read(path) == whole


def test_a_page_of_parquet_that_is_compressed_further_than_text_can_be(
    tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_files, "_LARGE_COLUMN_BYTES", 1 << 20)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "text": ["w" * (2 << 20)]}), path, compression="zstd", use_dictionary=False)
    result = read(path, write(tmp_path / "b.txt", "good"))
    assert result.labels == ["good"]
    assert [reason.split(":")[0] for *_, reason in result.rejected] == ["column 'text' is no text"]
