"""Words and how often each occurs: read from a text file, kept small within a model's file.

Kept as text, a word and its count a line, so that the counts stay what anyone can look at, change and count again;
what is made of them is made in a fraction of a second.
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

#: What a character's log-probability among words counts beside the picture's. Chosen on training crops that the
#: bundled recogniser's training left out.
DEFAULT_WEIGHT = 0.6
#: Words that are likely: a file of them, one a line, how often each occurs, or ``none``.
Words = Path | str | Mapping[str, float]
_LEVEL = 19
#: More than lists of words need, so that a foreign file cannot fill the memory.
_MOST_BYTES = 1 << 26


@dataclass(frozen=True)
class Lexicon:
    """Words that a recogniser prefers where a picture leaves doubt.

    Attributes:
        counts: word -> how often it occurs. weight: of a character's log-probability among them, beside the picture's.
    """

    counts: Mapping[str, float]
    weight: float = DEFAULT_WEIGHT


def read_word_counts(path: Path) -> Counter[str]:
    """Read a UTF-8 file of words, one a line; a word counts as often as it stands there, or as a number behind a tab.

    Raises:
        UserError: it is not such a file, or there is no word in it.
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
    """Return how often each word occurs; None for ``none``.

    Raises:
        UserError: the file is no list of words; a word that a program gives is empty or has a tab or a line break, or
            its count is no number above zero.
    """
    if not isinstance(words, Mapping):
        return None if str(words) == "none" else read_word_counts(Path(words))
    for word, count in words.items():
        if word.splitlines() != [word] or "\t" in word or not 0 < count < float("inf"):
            raise UserError(f"{word!r} with the count {count!r}", "Give words of one line, and counts above zero")
    return words


def pack(counts: Mapping[str, float]) -> NDArray[np.uint8]:
    """Return counts as compressed text, (bytes,), sorted: the same counts give the same bytes."""
    text = "\n".join(f"{word}\t{counts[word]:.17g}" for word in sorted(counts)).encode()
    if len(text) > _MOST_BYTES:
        raise UserError(
            f"words of {len(text) / 1e6:,.0f} MB, and a model's file keeps {_MOST_BYTES / 1e6:,.0f}",
            "Leave out those that seldom occur",
        )
    return np.frombuffer(zstandard.compress(text, _LEVEL), np.uint8)


def unpack(packed: NDArray[np.uint8]) -> Counter[str]:
    """Return what :func:`pack` packed, or raise :class:`DamagedStore`."""
    try:
        compressed = packed.tobytes()
        # The limit below counts for nothing where the file itself names a size.
        if zstandard.frame_content_size(compressed) > _MOST_BYTES:
            raise UserError("its lexicon is larger than the limit")
        text = zstandard.ZstdDecompressor().decompress(compressed, max_output_size=_MOST_BYTES).decode()
        return _counted(text, "the model's words")
    except (zstandard.ZstdError, UnicodeDecodeError, UserError) as error:
        raise DamagedStore(f"the model's words cannot be read ({error})", "Export it again") from error


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
