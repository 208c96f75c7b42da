"""The files that a corpus may be in, read as rows of text with their line numbers.

Rows are Arrow arrays of bytes that need not be UTF-8: each becomes labels on its own, so one bad byte costs one word
and not the file. Unreadable parts are rejected with their place, and reading continues after them.

A corpus or one of its lines may be larger than memory, and a few compressed bytes can decompress to gigabytes: every
read is bounded, and at most two blocks are in memory.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dptr.cache.choices import Unit
from dptr.cache.crops import lmdb_form
from dptr.cache.errors import UserError

#: Records one rejection in the source that is being read: line (None: the whole file), item, reason.
Reject = Callable[[int | None, str, str], None]

#: Columns that hold the text where no other is named, the first of these that a file has.
TEXT_COLUMNS = ("text", "word", "label", "words", "labels", "sentence", "transcription")

#: Where a block may be cut: at the end of a line, or at any white space.
LINE_ENDS = (b"\n",)
WORD_ENDS = (b"\n", b" ", b"\t", b"\r")

#: A block is about this long. An item longer than :data:`MOST_ITEM_BYTES` is rejected where it is counted; here only
#: what does not fit into a block.
BLOCK_BYTES = 8 << 20
MOST_ITEM_BYTES = 1_000_000
TOO_LONG = f"longer than {MOST_ITEM_BYTES:,} bytes"
_PIECE_BYTES = 64 << 10
#: Rows of a table at a time; few, because a row may be a whole document.
_TABLE_ROWS = 4096
#: A column that is larger and compressed further than text can be is no text.
_LARGE_COLUMN_BYTES = 256 << 20
_MOST_COMPRESSION = 200
_SHOWN_BYTES = 1000

#: How files begin that hold no text in UTF-8, and why they are rejected.
_NO_TEXT = {
    rb"\xff\xfe|\xfe\xff": "UTF-16 where UTF-8 is expected",
    rb"%PDF-": "a PDF, not text: save its text as .txt",
    rb"PK\x03\x04": "a zip file or an office document, not text: save its text as .txt",
    rb"\x89PNG|\xff\xd8\xff": "a picture, not text",
    rb"\x1f\x8b|BZh[1-9]1AY&SY|\xfd7zXZ\0|\x28\xb5\x2f\xfd": "compressed: name it .gz, .bz2, .xz or .zst",
    rb"PAR1": "a Parquet file: name it .parquet",
}
#: How a list of labelled crops begins: those of PaddleOCR and of dptr, and those of ICDAR.
_LABEL_LIST = rb'[^\t\n]+\.(?i:png|jpe?g|bmp|tiff?|webp)(\t|, ")'


@dataclass(frozen=True)
class Rows:
    """Neighbouring rows of one file.

    Attributes:
        texts: binary array without nulls, shape (rows,).
        lines: line or row number of each, from 1, ascending, shape (rows,), int64.
    """

    texts: pa.Array
    lines: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[bytes], lines: Sequence[int]) -> Rows:
        """Return rows of lists."""
        return cls(pa.array(texts, pa.binary()), np.array(lines, np.int64))


def require_readable(paths: Sequence[str]) -> None:
    """Check that every input exists, before any work.

    Raises:
        UserError: no input at all, a missing or unreadable file, what is no file, or a folder that is not an LMDB.
    """
    if not paths:
        raise UserError("no corpus was given", "Name text files, or - for standard input")
    for path in paths:
        if path == "-":
            continue
        if not os.path.exists(path):
            raise UserError(f"no such file: {path}", "Check the name")
        if os.path.isdir(path) and not os.path.isfile(os.path.join(path, lmdb_form.DATA_FILE)):
            raise UserError(f"{path} is a folder and not an LMDB", "Name its files, for instance with *.txt")
        if not os.path.isfile(path) and not os.path.isdir(path):
            # Opening it would block until something is written, and it can be read only once.
            raise UserError(f"{path} is a pipe or a device, not a file", "Name - and give it on standard input")
        if not os.access(path, os.R_OK):
            raise UserError(f"{path} cannot be read", "Check its permissions")


def read_rows(source: str, unit: Unit, column: str | None, reject: Reject) -> Iterator[Rows]:
    """Yield the rows of a file in order: text lines (``word``: pieces of lines), or the values of a column or LMDB.

    The kind follows from the suffix: .csv, .tsv, .jsonl, .ndjson and .json, .parquet, .lmdb and .mdb or a folder with
    ``data.mdb``; all else is text. Text, CSV and JSON lines may be compressed (.gz, .zst, .xz, .bz2).

    Args:
        column: of the tables; None for the first of :data:`TEXT_COLUMNS` that a file has.
    """
    suffixes = [suffix.lower() for suffix in Path(source).suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if os.path.isdir(source) or suffix in (".lmdb", ".mdb"):
        return _lmdb_rows(source, reject)
    if suffix in (".parquet", ".pq"):
        return _parquet_rows(source, column, reject)
    if suffix in (".jsonl", ".ndjson", ".json"):
        return _json_rows(source, column, reject)
    if suffix in (".csv", ".tsv"):
        return _csv_rows(source, column, reject, "\t" if suffix == ".tsv" else ",;\t")
    return _text_rows(source, unit, reject)


def _item_blocks(source: str, ends: tuple[bytes, ...], reject: Reject) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, bytes) of ``source``, each block ending after one of ``ends`` or with the file.

    Rejected through ``reject``: an item longer than a block, the rest of a damaged or cut file, what is no UTF-8 text.
    """
    line = 1
    waiting = bytearray()
    skipping = False
    try:
        for number, piece in enumerate(_pieces(source)):
            if number == 0 and (reason := _why_no_text(piece)):
                reject(None, "", reason)
                return
            if number == 0 and re.match(_LABEL_LIST, piece):
                reject(1, _shown(piece.partition(b"\n")[0]), "image files with labels, not text: keep the labels alone")
                return
            if skipping:
                start = min((found for end in ends if (found := piece.find(end)) >= 0), default=-1) + 1
                line += piece.count(b"\n", 0, start)
                piece = piece[start:]
                skipping = start == 0
                if skipping:
                    continue
            waiting += piece
            if len(waiting) < BLOCK_BYTES:
                continue
            if cut := _last_end(waiting, ends):
                block = bytes(waiting[:cut])
                del waiting[:cut]
                yield line, block
                line += block.count(b"\n")
            else:
                reject(line, _shown(waiting), TOO_LONG)
                waiting.clear()
                skipping = True
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reject(line + waiting.count(b"\n"), "", f"damaged or cut short from here on: {error}")
        # What follows the last end is half an item.
        del waiting[_last_end(waiting, ends) :]
    if waiting:
        yield line, bytes(waiting)


def _pieces(source: str) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file, or of standard input for ``-``, at most :data:`_PIECE_BYTES` at a time.

    ``read1`` returns the data before a truncation, while ``read`` would raise first.
    """
    make = _COMPRESSED.get(Path(source).suffix.lower(), partial(open, mode="rb"))
    opened: Any = nullcontext(sys.stdin.buffer) if source == "-" else make(source)
    with opened as stream:
        while piece := stream.read1(_PIECE_BYTES):
            yield piece


_COMPRESSED: dict[str, Callable[[str], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    # Arrow reads all frames of a file and reports a cut; zstandard's reader takes a cut for the end.
    ".zst": lambda path: pa.CompressedInputStream(path, "zstd"),
}


def _why_no_text(start: bytes) -> str | None:
    return next((reason for mark, reason in _NO_TEXT.items() if re.match(mark, start)), None)


def _last_end(block: bytearray, ends: tuple[bytes, ...]) -> int:
    """Return the position after the last of ``ends``, or 0."""
    return max(block.rfind(end) for end in ends) + 1


def _shown(raw: bytes | bytearray) -> str:
    return raw[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")


def _text_rows(source: str, unit: Unit, reject: Reject) -> Iterator[Rows]:
    for first_line, block in _item_blocks(source, WORD_ENDS if unit == "word" else LINE_ENDS, reject):
        offsets = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
        if not block.endswith(b"\n"):
            offsets = np.append(offsets, len(block))
        offsets = np.insert(offsets, 0, 0).astype(np.int32)
        count = len(offsets) - 1
        texts = pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(block)])
        yield Rows(texts, np.arange(first_line, first_line + count, dtype=np.int64))


def _column_of(names: Sequence[str], column: str | None) -> int | str:
    """Return the position of the column to read, or why there is none."""
    if column is not None:
        return names.index(column) if column in names else f"no column {column!r}: it has {', '.join(names)}"
    folded = [name.lower() for name in names]
    found = [folded.index(name) for name in TEXT_COLUMNS if name in folded]
    return found[0] if found else f"no column of text: it has {', '.join(names)}; name one with --column"


def _csv_rows(source: str, column: str | None, reject: Reject, delimiters: str) -> Iterator[Rows]:
    """Read one column of a table whose first line names its columns; in TSV files quotes are characters like others."""
    line = 0

    def lines() -> Iterator[str]:
        nonlocal line
        for first_line, block in _item_blocks(source, LINE_ENDS, reject):
            for number, raw in enumerate(block.removesuffix(b"\n").split(b"\n"), first_line):
                line = number
                # Bytes that are no UTF-8 pass through, and cost their own word.
                yield raw.decode("utf-8", "surrogateescape") + "\n"

    unread = lines()
    header = next(unread, "").removeprefix("\ufeff").strip("\r\n")
    if not header:
        return
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiters == "\t" else csv.QUOTE_MINIMAL
    for delimiter in delimiters:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter, quoting=quoting))]
        position = _column_of(names, column)
        if not isinstance(position, str):
            break
    else:
        reject(line, header, str(_column_of([header], column)))
        return
    texts: list[bytes] = []
    numbers: list[int] = []
    rows = csv.reader(unread, delimiter=delimiter, quoting=quoting)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:  # a field without end, for instance
            reject(line, "", f"not CSV: {error}")
            continue
        if row is None or len(texts) == _TABLE_ROWS:
            yield Rows.of(texts, numbers)
            texts, numbers = [], []
        if row is None:
            return
        if row and len(row) != len(names):
            reject(line, delimiter.join(row), f"not as many columns as the header: {len(row)}, not {len(names)}")
        elif row:
            texts.append(row[position].encode("utf-8", "surrogateescape"))
            numbers.append(line)


def _json_rows(source: str, column: str | None, reject: Reject) -> Iterator[Rows]:
    for first_line, block in _item_blocks(source, LINE_ENDS, reject):
        texts: list[bytes] = []
        lines: list[int] = []
        for line, raw in enumerate(block.split(b"\n"), first_line):
            if not raw.strip():
                continue
            text, reason = _json_text(raw, column)
            if reason:
                reject(line, _shown(raw), reason)
                continue
            texts.append(text)
            lines.append(line)
        yield Rows.of(texts, lines)


def _json_text(raw: bytes, column: str | None) -> tuple[bytes, str]:
    """Return the column's text and "", or b"" and why there is none."""
    try:
        value = json.loads(raw)
    except UnicodeDecodeError:
        return b"", "invalid UTF-8"
    except (ValueError, RecursionError) as error:
        return b"", f"not JSON: {error}"
    if not isinstance(value, dict):
        return b"", "no JSON object: one a line is expected"
    names = list(value)
    position = _column_of(names, column)
    if isinstance(position, str):
        return b"", position
    text: Any = value[names[position]]
    if not isinstance(text, str | int | float) or isinstance(text, bool):
        return b"", f"column {names[position]!r} holds no text"
    # JSON can spell half of a surrogate pair; as bytes it is rejected later like any other invalid UTF-8.
    return str(text).encode("utf-8", "surrogatepass"), ""


def _parquet_rows(source: str, column: str | None, reject: Reject) -> Iterator[Rows]:
    line = 1
    try:
        with pq.ParquetFile(source) as file:
            names = file.schema_arrow.names
            position = _column_of(names, column)
            if isinstance(position, str):
                reject(None, "", position)
                return
            name, kind = names[position], file.schema_arrow.field(position).type
            if pa.types.is_nested(kind):
                reject(None, "", f"column {name!r} holds no text: it is {kind}")
                return
            if reason := _why_unbelievable(file.metadata, name):
                reject(None, "", reason)
                return
        # As a dictionary, a repeated long value is held once.
        with pq.ParquetFile(source, read_dictionary=[name]) as file:
            for batch in file.iter_batches(_TABLE_ROWS, columns=[name]):
                yield from _column_rows(batch.column(0), line, name, reject)
                line += len(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        reject(line, "", f"damaged or cut short from here on: {error}")


def _why_unbelievable(metadata: pq.FileMetaData, name: str) -> str | None:
    """Return why a column is no text, by how far it is compressed: Arrow reads its pages in one piece."""
    leaf = next(leaf for leaf in range(metadata.num_columns) if metadata.schema.column(leaf).path == name)
    for group in range(metadata.num_row_groups):
        chunk = metadata.row_group(group).column(leaf)
        size, compressed = chunk.total_uncompressed_size, chunk.total_compressed_size
        if size > _LARGE_COLUMN_BYTES and size > _MOST_COMPRESSION * compressed:
            return f"column {name!r} is no text: {compressed:,} compressed bytes of {size:,}"
    return None


def _column_rows(values: pa.Array, first_line: int, column: str, reject: Reject) -> Iterator[Rows]:
    """Yield the values that are not null, in blocks of about :data:`BLOCK_BYTES`."""
    lines = np.arange(first_line, first_line + len(values), dtype=np.int64)
    present = values.is_valid()
    for line in lines[~present.to_numpy(zero_copy_only=False)].tolist():
        reject(line, "", f"column {column!r} holds no text")
    lines, values = lines[present.to_numpy(zero_copy_only=False)], values.filter(present)
    if not pa.types.is_dictionary(values.type):
        values = values.cast(pa.string()).dictionary_encode()
    lengths = pc.binary_length(values.dictionary).to_numpy()[values.indices.to_numpy()]
    for line in lines[lengths > BLOCK_BYTES].tolist():
        reject(line, "", TOO_LONG)
    short = lengths <= BLOCK_BYTES
    lines, values, lengths = lines[short], values.filter(pa.array(short)), lengths[short]
    blocks = np.cumsum(lengths) // BLOCK_BYTES
    for rows in np.split(np.arange(len(lines)), np.flatnonzero(np.diff(blocks)) + 1):
        texts = pc.take(values.dictionary, values.indices.take(pa.array(rows)))
        yield Rows(texts.cast(pa.binary()), lines[rows])


def _lmdb_rows(source: str, reject: Reject) -> Iterator[Rows]:
    """Read the labels of a scene-text LMDB."""
    labels = lmdb_form.stored_labels(Path(source))
    try:
        while found := dict(islice(labels, _TABLE_ROWS)):
            for number in (number for number, label in found.items() if label is None):
                reject(number, f"label-{number:09d}", "no such key")
            kept = {number: label for number, label in found.items() if label is not None}
            yield Rows.of(list(kept.values()), list(kept))
    except UserError as error:
        reject(None, "", f"damaged LMDB: {error.problem}")
