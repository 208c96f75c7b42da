"""Rows of raw text -> the labels in them, counted.

Most items of most corpora are printable ASCII, which normalisation leaves as it is, and most items come again and
again. So the distinct items of a block are found first, by Arrow, and only those that are not plain go through Python.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dptr.cache.charset import LetterCase, fold_case
from dptr.cache.choices import Units
from dptr.cache.normalization import Normalization
from dptr.pipeline.choices import Unit
from dptr.pipeline.text.blocks import Refuse
from dptr.pipeline.text.corpus_files import Rows

_PLAIN_WORD = "^[!-~]+$"
_PLAIN_LINE = "^[!-~]+( [!-~]+)*$"
#: A label that is too long to be used is kept only as far as the quarantine shows it.
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class CountedLabels:
    """Labels of a block, nearly distinct (two spellings of one label may stand apart).

    Attributes:
        labels: string array, shape (labels,). counts: occurrences, int64. lines: line of the first one, int64.
        read: items read, refused ones included. folded: items whose case was changed.
    """

    labels: pa.Array
    counts: NDArray[np.int64]
    lines: NDArray[np.int64]
    read: int
    folded: int


def count_labels(
    rows: Rows,
    unit: Unit,
    normalization: Normalization,
    case: LetterCase | None,
    refuse: Refuse,
    units: Units = "codepoint",
) -> CountedLabels:
    """Split rows into items and items into normalised labels; undecodable items and NUL bytes are refused.

    With ``case`` all labels are folded to it.

    Whether a label fits the charset and the length is for the caller to judge, once for the whole corpus.
    """
    items, lines = _items(rows, unit)
    distinct, counts, lines = _distinct(items, lines)
    plain = pc.match_substring_regex(distinct, _PLAIN_LINE if normalization.keep_spaces else _PLAIN_WORD)
    is_plain = plain.to_numpy(zero_copy_only=False)
    shown = max(_SHOWN_CHARACTERS, normalization.most_code_points(units) + 1)

    labels = pc.utf8_slice_codeunits(distinct.filter(plain).cast(pa.string()), 0, shown)
    rest: list[tuple[str, int, int]] = []
    odd = distinct.filter(pc.invert(plain)).to_pylist()
    for item, count, line in zip(odd, counts[~is_plain].tolist(), lines[~is_plain].tolist(), strict=True):
        rest += [(normalization.apply(text), count, line) for text in _texts(item, line, unit, refuse)]
    folded = _folded(labels, case)
    other = [fold_case(label, case) for label, _, _ in rest]
    changed = pc.not_equal(labels, folded).to_numpy(zero_copy_only=False)
    changed = np.append(changed, [new != label for new, (label, _, _) in zip(other, rest, strict=True)]).astype(bool)
    counts = np.append(counts[is_plain], np.array([count for _, count, _ in rest], np.int64))
    return CountedLabels(
        pa.concat_arrays([folded, pa.array([label[:shown] for label in other], pa.string())]),
        counts,
        np.append(lines[is_plain], np.array([line for _, _, line in rest], np.int64)),
        len(items),
        int(counts[changed].sum()),
    )


def _folded(labels: pa.Array, case: LetterCase | None) -> pa.Array:
    """Fold labels that are ASCII alone."""
    return {"lower": pc.ascii_lower, "upper": pc.ascii_upper, None: lambda unchanged: unchanged}[case](labels)


def _items(rows: Rows, unit: Unit) -> tuple[pa.Array, NDArray[np.int64]]:
    """Split at ASCII white space, or trim it; empty items are none. Returns binary items and their lines."""
    # The kernels want the string type but work on single bytes, so invalid UTF-8 does them no harm.
    texts = rows.texts.view(pa.string())
    lines = rows.lines
    if unit == "word":
        words = pc.ascii_split_whitespace(texts)
        lines = lines[pc.list_parent_indices(words).to_numpy()]
        texts = words.flatten()
    else:
        texts = pc.ascii_trim_whitespace(texts)
    filled = pc.greater(pc.binary_length(texts), 0)
    return texts.filter(filled).view(pa.binary()), lines[filled.to_numpy(zero_copy_only=False)]


def _distinct(items: pa.Array, lines: NDArray[np.int64]) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct items, how often each occurs, and the line where it occurs first."""
    encoded = items.dictionary_encode()
    codes = encoded.indices.to_numpy()
    first = np.empty(len(encoded.dictionary), np.int64)
    # Assigned from the back, so that the first occurrence is the one that stays.
    first[codes[::-1]] = lines[::-1]
    return encoded.dictionary, np.bincount(codes, minlength=len(first)).astype(np.int64), first


def _texts(item: bytes, line: int, unit: Unit, refuse: Refuse) -> list[str]:
    """Decode an item, dropping a byte-order mark in front, and split it at white space that is not ASCII."""
    try:
        text = item.decode("utf-8-sig")
    except UnicodeDecodeError:
        refuse(line, item[:1000].decode("utf-8", "backslashreplace"), "invalid UTF-8")
        return []
    if "\0" in text:
        refuse(line, text[:1000], "NUL byte")
        return []
    words = text.split()
    return words if unit == "word" or not words else [text]
