"""The kinds of file that a corpus may be in, read as rows of text with their line numbers.

Rows are Arrow arrays of bytes, not yet known to be UTF-8: labels are made of each by itself, so that
one bad byte costs one word and not the file. Whatever cannot be read is refused with its place, and reading goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dptr.cache.errors import UserError
from dptr.cache.word_images import lmdb_form
from dptr.pipeline.choices import Unit
from dptr.pipeline.text.blocks import COMPRESSED_SUFFIXES, LINE_ENDS, WORD_ENDS, Refuse, item_blocks

#: Rows of a table at a time; few, because a row may be a whole document.
_TABLE_ROWS = 4096


@dataclass(frozen=True)
class Rows:
    """Neighbouring rows of one file.

    Attributes:
        texts: binary array without nulls, shape (rows,).
        lines: line or row number of each, from 1, ascending, shape (rows,), int64.
    """

    texts: pa.Array
    lines: NDArray[np.int64]


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
            # Opening it would block until something is written, and it could be read once only.
            raise UserError(f"{path} is a pipe or a device, not a file", "Name - and give it on standard input")
        if not os.access(path, os.R_OK):
            raise UserError(f"{path} cannot be read", "Check its permissions")


def read_rows(source: str, unit: Unit, column: str, refuse: Refuse) -> Iterator[Rows]:
    """Yield the rows of a file in order: text lines (``word``: pieces of lines), or the values of a column or LMDB.

    The kind follows from the suffix: .jsonl and .ndjson, .parquet, .lmdb and .mdb or a folder with ``data.mdb``; all
    else is text. Text and JSONL may be compressed (.gz, .zst, .xz, .bz2).
    """
    suffixes = [suffix.lower() for suffix in Path(source).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if os.path.isdir(source) or suffix in (".lmdb", ".mdb"):
        return _lmdb_rows(source, refuse)
    if suffix in (".parquet", ".pq"):
        return _parquet_rows(source, column, refuse)
    if suffix in (".jsonl", ".ndjson"):
        return _json_rows(source, column, refuse)
    return _text_rows(source, unit, refuse)


def _text_rows(source: str, unit: Unit, refuse: Refuse) -> Iterator[Rows]:
    for first_line, block in item_blocks(source, WORD_ENDS if unit == "word" else LINE_ENDS, refuse):
        offsets = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
        if not block.endswith(b"\n"):
            offsets = np.append(offsets, len(block))
        offsets = np.insert(offsets, 0, 0).astype(np.int32)
        count = len(offsets) - 1
        texts = pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(block)])
        yield Rows(texts, np.arange(first_line, first_line + count, dtype=np.int64))


def _json_rows(source: str, column: str, refuse: Refuse) -> Iterator[Rows]:
    for first_line, block in item_blocks(source, LINE_ENDS, refuse):
        texts: list[bytes] = []
        lines: list[int] = []
        for line, raw in enumerate(block.split(b"\n"), first_line):
            if not raw.strip():
                continue
            text, reason = _json_text(raw, column)
            if reason:
                refuse(line, raw[:1000].decode("utf-8", "backslashreplace"), reason)
                continue
            texts.append(text)
            lines.append(line)
        yield Rows(pa.array(texts, pa.binary()), np.array(lines, np.int64))


def _json_text(raw: bytes, column: str) -> tuple[bytes, str]:
    """Return the column's text and "", or b"" and why there is none."""
    try:
        value = json.loads(raw)
    except UnicodeDecodeError:
        return b"", "invalid UTF-8"
    except (ValueError, RecursionError) as error:
        return b"", f"not JSON: {error}"
    if not isinstance(value, dict) or column not in value:
        return b"", f"no column {column!r}"
    text: Any = value[column]
    if not isinstance(text, str | int | float) or isinstance(text, bool):
        return b"", f"column {column!r} holds no text"
    # JSON can spell half of a surrogate pair; as bytes it is refused later like any other invalid UTF-8.
    return str(text).encode("utf-8", "surrogatepass"), ""


def _parquet_rows(source: str, column: str, refuse: Refuse) -> Iterator[Rows]:
    line = 1
    try:
        with pq.ParquetFile(source) as file:
            schema = file.schema_arrow
            if column not in schema.names:
                refuse(None, "", f"no column {column!r}: it has {', '.join(schema.names)}")
                return
            if pa.types.is_nested(schema.field(column).type):
                refuse(None, "", f"column {column!r} holds no text: it is {schema.field(column).type}")
                return
            for batch in file.iter_batches(_TABLE_ROWS, columns=[column]):
                yield _column_rows(batch.column(0), line, column, refuse)
                line += len(batch)
    except (pa.ArrowException, OSError, ValueError) as error:
        refuse(line, "", f"damaged or cut short from here on: {error}")


def _column_rows(values: pa.Array, first_line: int, column: str, refuse: Refuse) -> Rows:
    lines = np.arange(first_line, first_line + len(values), dtype=np.int64)
    present = values.is_valid()
    for line in lines[~present.to_numpy(zero_copy_only=False)].tolist():
        refuse(line, "", f"column {column!r} holds no text")
    texts = values.filter(present)
    if not (pa.types.is_binary(texts.type) or pa.types.is_large_binary(texts.type)):
        texts = texts.cast(pa.string())
    return Rows(texts.cast(pa.binary()), lines[present.to_numpy(zero_copy_only=False)])


def _lmdb_rows(source: str, refuse: Refuse) -> Iterator[Rows]:
    """Read the labels of a scene-text LMDB."""
    labels = lmdb_form.stored_labels(Path(source))
    try:
        while found := dict(islice(labels, _TABLE_ROWS)):
            for number in (number for number, label in found.items() if label is None):
                refuse(number, f"label-{number:09d}", "no such key")
            kept = {number: label for number, label in found.items() if label is not None}
            yield Rows(pa.array(list(kept.values()), pa.binary()), np.array(list(kept), np.int64))
    except UserError as error:
        refuse(None, "", f"damaged LMDB: {error.problem}")
