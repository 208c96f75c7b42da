"""A lexicon: words with counts, read from a text file and stored in model files.

It is stored as text, one word and its count a line, so that it can be read and edited; the n-gram model is built from
it in a fraction of a second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from dptr.cache.errors import DamagedStore, UserError

#: Weight of the language model's log-probability of a character. Chosen on training crops that were held out from the
#: bundled recogniser's training.
DEFAULT_WEIGHT = 0.6
#: A lexicon: a file with one word a line, counts by word, or ``none``.
Words = Path | str | Mapping[str, float]
_LEVEL = 19
#: Larger than any word list, so that a foreign file cannot exhaust memory.
_MOST_BYTES = 1 << 26


@dataclass(frozen=True)
class Lexicon:
    """Words for beam search.

    Attributes:
        counts: word -> count. weight: of the language model's log-probability of a character.
    """

    counts: Mapping[str, float]
    weight: float = DEFAULT_WEIGHT


def read_word_counts(path: Path) -> Counter[str]:
    """Read a UTF-8 file of one word a line, optionally with a tab and a count; repeated words add up.

    Raises:
        UserError: not such a file, or it holds no word.
    """
    try:
        counts = _counted(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"the words in {path} are not UTF-8 (byte {error.start + 1})", "Save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"the words in {path} cannot be read ({error.strerror})", "Name a text file") from error
    if not counts:
        raise UserError(f"{path} holds no word", "Give a text file with a word a line")
    return counts


def word_counts(words: Words) -> Mapping[str, float] | None:
    """Return the count of each word; None for ``none``.

    Raises:
        UserError: the file is no word list; or a word is empty or has a tab or a line break, or a count is not
            positive.
    """
    if not isinstance(words, Mapping):
        return None if str(words) == "none" else read_word_counts(Path(words))
    for word, count in words.items():
        if word.splitlines() != [word] or "\t" in word or not 0 < count < float("inf"):
            raise UserError(f"{word!r} with the count {count!r}", "Give words of one line, and counts above zero")
    return words


def pack(counts: Mapping[str, float]) -> NDArray[np.uint8]:
    """Return counts as compressed text, (bytes,), sorted: the same counts give the same bytes.

    Raises:
        UserError: they exceed the limit of a model file.
    """
    text = "\n".join(f"{word}\t{counts[word]:.17g}" for word in sorted(counts)).encode()
    if len(text) > _MOST_BYTES:
        raise UserError(
            f"words of {len(text) / 1e6:,.0f} MB, and a model's file keeps {_MOST_BYTES / 1e6:,.0f}",
            "Remove rare words",
        )
    return np.frombuffer(zstandard.compress(text, _LEVEL), np.uint8)


def unpack(packed: NDArray[np.uint8]) -> Counter[str]:
    """Return what :func:`pack` packed, or raise :class:`DamagedStore`."""
    try:
        compressed = packed.tobytes()
        # The limit below would not apply if the file stated a size.
        if zstandard.frame_content_size(compressed) > _MOST_BYTES:
            raise UserError("its lexicon is larger than the limit")
        text = zstandard.ZstdDecompressor().decompress(compressed, max_output_size=_MOST_BYTES).decode()
        return _counted(text, "the model's words")
    except (zstandard.ZstdError, UnicodeDecodeError, UserError) as error:
        raise DamagedStore(f"the model's lexicon cannot be read ({error})", "Export it again") from error


def _counted(text: str, source: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for number, line in enumerate(text.splitlines(), start=1):
        word, tab, count = line.partition("\t")
        if not word:
            continue
        times = _number(count) if tab else 1.0
        if times is None:
            raise UserError(
                f"line {number} of {source}: {count!r} is not a count", "Use the form word, tab, positive number"
            )
        counts[word] += times  # type: ignore[assignment]
    return counts


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None
