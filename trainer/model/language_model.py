"""Character n-gram model of a lexicon, in one sorted array.

Each character of the lexicon is
stored with the six before it, packed into one integer: the character itself in the highest bits, then the nearest
before it, and so on. Sorted, all places that share a character and any number of those before it lie side by side
(a suffix array of the reversed text), so that two binary searches count them. Counts behind a long context are
smoothed with those behind the next shorter one by a Dirichlet prior. Source: MacKay and Peto, Natural Language
Engineering, 1995.

Number plates and codes have a format instead of a spelling: any digit may follow two letters. Their contexts are the
kinds of the characters before, letter or digit, so that few codes show the format of all.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dptr.cache.text.charset import Charset
from dptr.cache.text.lexicon import DEFAULT_WEIGHT

#: Characters of an n-gram, the one that is scored among them; fewer where the charset needs many bits a character.
_LONGEST = 7
#: How many occurrences the shorter context's distribution counts as.
_PRIOR = 5.0
#: Share of characters taken to follow no rule, as in numbers and names, so that none is ruled out.
_UNKNOWN = 0.1
#: One less than a signed integer has, so that what lies behind the last n-gram can still be asked for.
_BITS = 62
_END = 1
#: Codes that show a format, and how many of them at most are held out to compare models.
_FEWEST_CODES, _MOST_HELD_OUT = 30, 200
_DIGIT = re.compile(r"\d")


class _Counts:
    """N-grams (count,), sorted, and how often those before each of them occur together."""

    def __init__(self, grams: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        order = grams.argsort()
        self.grams, self.sums = grams[order], np.concatenate([[0.0], weights[order].cumsum()])

    def between(self, first: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how often n-grams from ``first`` to before ``last`` occur, of the same shape."""
        counts: NDArray[np.float64] = self.sums[self.grams.searchsorted(last)]
        counts -= self.sums[self.grams.searchsorted(first)]
        return counts


def is_code(word: str) -> bool:
    """Return whether a word has a digit, and no space."""
    return " " not in word and _DIGIT.search(word) is not None


def format_model(counts: Mapping[str, float], charset: Charset, weight: float) -> CharacterModel | None:
    """Return a model of the codes' formats where it predicts held-out codes better than their characters do.

    Codes that recur, such as prices, are predicted better by their characters; serial numbers by their format.

    Args:
        counts: word -> how often it occurs. charset, weight: as of a :class:`CharacterModel`.

    Returns:
        None where the format predicts worse, or there are too few codes.
    """
    codes = {word: count for word, count in counts.items() if is_code(word)}
    if len(codes) < _FEWEST_CODES:
        return None
    held_out = sorted(codes, key=lambda code: zlib.crc32(code.encode()))[: min(len(codes) // 4, _MOST_HELD_OUT)]
    # One occurrence of each is held out; those that occur more often stay.
    others = {
        code: count for code, count in (codes | {code: codes[code] - 1 for code in held_out}).items() if count > 0
    }
    by_character, by_format = (CharacterModel(others, charset, of_formats=of_formats) for of_formats in (False, True))
    gain = sum(codes[code] * (by_format.mean_score(code) - by_character.mean_score(code)) for code in held_out)
    return CharacterModel(codes, charset, weight, of_formats=True) if gain > 0 else None


class CharacterModel:
    """Scores characters behind contexts; upper and lower case are the same to it.

    A context is an integer, :attr:`begin` at a word's start and :meth:`after` behind each character. A space, where the
    charset has one, ends a word and begins the next.

    Args:
        counts: word -> how often it occurs. Characters that the charset lacks are skipped.
        charset: gives the classes that are scored, 0 for the end.
        weight: of a score beside the log-probability that a picture gives.
        of_formats: whether contexts are of letters and digits instead of the characters themselves.
    """

    #: The context of a word's first character.
    begin = 0

    def __init__(
        self,
        counts: Mapping[str, float],
        charset: Charset,
        weight: float = DEFAULT_WEIGHT,
        of_formats: bool = False,
    ) -> None:
        self.weight = weight
        self._charset = charset
        folded = [_folded(character) for character in charset.characters]
        symbols = {character: index for index, character in enumerate(dict.fromkeys(folded), start=_END + 1)}
        of_classes = (_END if character == " " else symbols[character] for character in folded)
        self._symbol_of = np.array([_END, *of_classes], np.int64)
        self._symbols = len(symbols) + 1
        #: What a symbol is in a context, (symbols,).
        self._in_context = np.arange(self._symbols + 1)
        if of_formats:
            first: dict[str, int] = {}
            for character, symbol in symbols.items():
                self._in_context[symbol] = first.setdefault(_kind(character), symbol)
        self._bits = (len(symbols) + 1).bit_length()
        self._length = min(_LONGEST, _BITS // self._bits)
        if " " in charset.characters:
            counts = _of_single_words(counts)
        #: Whether a word has a digit; words without say nothing about predictions with some.
        self.has_digits = any(map(_DIGIT.search, counts))
        text, weights = _as_symbols(counts, symbols, charset)
        grams = self._grams_of(text)
        self._scored = _Counts(grams, weights)
        self._met = self._scored
        if of_formats:
            head = self._bits * (self._length - 1)
            nearest = self._in_context[grams >> head] << head
            self._met = _Counts(nearest | (grams & ((1 << head) - 1)), weights)
        self._of_formats = of_formats
        self._words = weights[text == _END].sum()

    def after(self, contexts: NDArray[np.int64] | int, classes: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Return the contexts behind one more character; all three of shape (count,), or one of each."""
        symbols = self._symbol_of[classes]
        behind = self._in_context[symbols] << self._bits * (self._length - 2)
        return np.where(symbols == _END, self.begin, behind | (contexts >> self._bits))

    def scores(self, contexts: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return log-probabilities of classes behind contexts; all three of shape (count,)."""
        return self.scores_of_met(contexts, classes, self.met(contexts))[0]

    def mean_score(self, word: str) -> float:
        """Return the mean log-probability of a word's characters and its end."""
        context, scores = np.array([self.begin]), []
        for of in [*self._charset.encode(word).tolist(), self._charset.end]:
            scores.append(float(self.scores(context, np.array([of]))[0]))
            context = self.after(context, np.array([of]))
        return float(np.mean(scores))

    def met(self, contexts: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how often contexts (count,) were met, cut to none of their characters, to the nearest, to two and on.

        Returns:
            counts, (count, characters of an n-gram).
        """
        # How often a context was met is how often its nearest character was, with the others before it.
        met = np.empty((len(contexts), self._length))
        met[:, 1:] = self._counts(self._met, contexts[:, None] << self._bits, np.arange(1, self._length))
        met[contexts == self.begin] = self._words
        met[:, 0] = self._met.sums[-1]
        return met

    def scores_of_met(
        self, contexts: NDArray[np.int64], classes: NDArray[np.int64], met: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what :meth:`scores` and what :meth:`met` returns for the contexts behind the classes.

        So each position is looked up only once.

        Args:
            contexts, classes: (count,). met: of the contexts, (count, characters of an n-gram).
        """
        symbols = self._symbol_of[classes]
        grams = (symbols << self._bits * (self._length - 1)) | contexts
        counts = self._counts(self._scored, grams[:, None], np.arange(1, self._length + 1))
        # Behind each length: the chance by counts, and how much of the shorter length's goes in.
        smoothed = met + _PRIOR
        probabilities, shares = (counts / smoothed).T, (_PRIOR / smoothed).T
        chance = np.full(len(grams), 1 / self._symbols)
        for own, share in zip(probabilities, shares, strict=True):
            chance = own + share * chance
        logarithms: NDArray[np.float64] = np.log((1 - _UNKNOWN) * chance + _UNKNOWN / self._symbols)
        if self._of_formats:
            return logarithms, self.met(self.after(contexts, classes))
        behind = np.concatenate([met[:, :1], counts[:, :-1]], axis=1)
        if (symbols == _END).any():
            behind[symbols == _END] = self.met(np.array([self.begin]))[0]
        return logarithms, behind

    def _counts(self, counted: _Counts, grams: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how often n-grams occur, of each the first ``lengths`` characters alone; shapes are broadcast."""
        unread = self._bits * (self._length - lengths)
        first = grams >> unread << unread
        return counted.between(first, first + (1 << unread))

    def _grams_of(self, text: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return each symbol of ``text`` (length,) packed with those before it in the same word."""
        starts = np.concatenate([[0], np.flatnonzero(text == _END) + 1])
        place = np.arange(len(text)) - np.repeat(starts[:-1], np.diff(starts))
        grams = np.zeros_like(text)
        for back in range(self._length):
            symbols = np.roll(self._in_context[text], back) if back else text
            before = np.where(place >= back, symbols, 0)
            grams |= before << self._bits * (self._length - 1 - back)
        return grams


def _of_single_words(counts: Mapping[str, float]) -> Mapping[str, float]:
    """Return how often the words of phrases occur."""
    if not any(" " in phrase for phrase in counts):
        return counts
    words: Counter[str] = Counter()
    for phrase, count in counts.items():
        for word in phrase.split():
            words[word] += count  # type: ignore[assignment]  # counts may be fractions
    return words


def _as_symbols(
    counts: Mapping[str, float], symbols: Mapping[str, int], charset: Charset
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return all words in a row, each closed by the end's symbol, and for each symbol its word's count: (length,)."""
    if charset.units == "grapheme" or charset.order == "visual":
        return _as_symbols_of_units(counts, symbols, charset)
    end = "\n"
    joined = "".join(word + end for word in counts)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    of_code = np.zeros(int(codes.max(initial=ord(end))) + 1, np.int64)
    for character in set(joined):
        of_code[ord(character)] = symbols.get(_folded(character), 0)
    of_code[ord(end)] = _END
    text = of_code[codes]
    words = np.cumsum(text == _END) - (text == _END)
    known = text > 0
    weights = np.fromiter(counts.values(), np.float64, len(counts))
    return text[known], weights[words[known]]


def _as_symbols_of_units(
    counts: Mapping[str, float], symbols: Mapping[str, int], charset: Charset
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """As :func:`_as_symbols`, word by word: what a unit is, and where it is seen, its neighbours decide."""
    text: list[int] = []
    lengths: list[int] = []
    for word in counts:
        before = len(text)
        text += [symbol for unit in charset.emitted(word) if (symbol := symbols.get(_folded(unit), 0))]
        text.append(_END)
        lengths.append(len(text) - before)
    weights = np.fromiter(counts.values(), np.float64, len(counts))
    return np.array(text, np.int64), np.repeat(weights, lengths)


def _kind(character: str) -> str:
    """Return what a character is in a format: a digit, a Latin letter, another letter, or itself."""
    if _DIGIT.match(character):
        return "0"
    if character.isalpha():
        return "a" if character.isascii() else "\u00e0"
    return character


def _folded(character: str) -> str:
    """Return a character in lower case, by itself: within a word a sigma would depend on its neighbours.

    A few capitals, such as the dotted one of Turkish, become two characters; these stay as they are.
    """
    lower = character.lower()
    return lower if len(lower) == len(character) else character
