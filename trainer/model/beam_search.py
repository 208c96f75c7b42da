"""CTC prefix beam search with a character language model.

CTC predicts the class of each column independently. For blurred letters many texts are almost equally likely, and the
language model decides between them. Beams advance by one column at a time, for all pictures of a batch together, so
that the language model scores them in one call. Texts are the nodes of a tree.
Source: Hannun et al., First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional RNNs, 2014.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, log1p

import numpy as np
from numpy.typing import NDArray

from dptr.trainer.model.language_model import CharacterModel

#: A text as classes, and the share that it has of the probability of all texts that were kept.
Candidate = tuple[tuple[int, ...], float]

#: Beam width, and the maximum difference of log-probability from the best text.
_KEPT, _BEHIND = 16, 6.0
#: Classes tried at a column, and the log-probability below which a class is skipped.
_TRIED, _LEAST = 5, -7.0
#: What each character adds to its log-probability among words, since longer texts are less likely. Chosen on the
#: training crops that the bundled recogniser's training left out.
_BONUS = 2.2
_END = 0


def search(columns: Sequence[NDArray[np.float32]], words: CharacterModel) -> list[list[Candidate]]:
    """Find the most likely texts of pictures.

    Args:
        columns: of each picture the log-probabilities of classes, (columns, classes); 0 is the blank and the end.
        words: the language model.

    Returns:
        of each picture the texts of its beam, the most likely first.
    """
    beams = [_Beam(picture, words) for picture in columns]
    for column in range(max(map(len, columns), default=0)):
        going = [beam for beam in beams if column < len(beam.columns)]
        _score([text for beam in going for text in beam.grow(column)], words)
        for beam in going:
            beam.advance(column)
    ends = [[_Text(text, _END) for text in beam.kept] for beam in beams]
    _score([end for texts in ends for end in texts], words)
    return [_candidates(texts) for texts in ends]


class _Text:
    """A text: another one and a class behind it."""

    __slots__ = ("before", "blank", "character", "context", "last", "longer", "met", "reached", "score", "total")

    #: What words make of it, the context behind it, and how often that was met.
    score: float
    context: int
    met: NDArray[np.float64]

    def __init__(self, before: _Text | None, last: int) -> None:
        self.before, self.last = before, last
        #: Log-probabilities of all its alignments, of those that end in a blank and of the others.
        self.total = self.blank = self.character = -inf
        #: Log-probability of its alignments whose last character is of the column that is gone over.
        self.reached = -inf
        #: Class -> the text with it behind.
        self.longer: dict[int, _Text] = {}

    def classes(self) -> tuple[int, ...]:
        """Return the text as classes."""
        return () if self.before is None else (*self.before.classes(), self.last)

    def ranked(self) -> float:
        """Return how likely picture and words together make it."""
        return self.total + self.score


class _Beam:
    """The likeliest texts of one picture so far."""

    def __init__(self, columns: NDArray[np.float32], words: CharacterModel) -> None:
        self.columns = columns.tolist()
        self.tried = _likely(columns)
        empty = _Text(None, _END)
        empty.total, empty.blank, empty.score, empty.context = 0.0, 0.0, 0.0, words.begin
        empty.met = words.met(np.array([words.begin]))[0]
        self.kept = [empty]
        #: Texts that the column adds to those that are kept.
        self.added: list[_Text] = []

    def grow(self, column: int) -> list[_Text]:
        """Find the texts that a column adds; return those that have not been scored yet."""
        log_probabilities = self.columns[column]
        self.added = []
        new = []
        kept = set(self.kept) if self.tried[column] else set()
        for of in self.tried[column]:
            chance = log_probabilities[of]
            for text in self.kept:
                # The same character anew needs a blank in between.
                reached = (text.blank if of == text.last else text.total) + chance
                if reached == -inf:
                    continue
                longer = text.longer.get(of)
                if longer is None:
                    longer = text.longer[of] = _Text(text, of)
                    new.append(longer)
                longer.reached = reached
                if longer not in kept:
                    self.added.append(longer)
        return new

    def advance(self, column: int) -> None:
        """Go over a column."""
        log_probabilities = self.columns[column]
        blank = log_probabilities[_END]
        for text in self.kept:
            again = text.character + log_probabilities[text.last]
            text.blank = text.total + blank
            text.character = again if text.reached == -inf else _sum(text.reached, again)
            text.total, text.reached = _sum(text.blank, text.character), -inf
        for text in self.added:
            text.total = text.character = text.reached
            text.blank = text.reached = -inf
        if self.added:
            ranked = sorted([*self.kept, *self.added], key=_Text.ranked, reverse=True)
            least = ranked[0].ranked() - _BEHIND
            self.kept = [text for text in ranked[:_KEPT] if text.ranked() > least]


def _candidates(ends: Sequence[_Text]) -> list[Candidate]:
    """Return texts, given with the end behind them, and their shares, the likeliest first."""
    scores = [end.before.total + end.score for end in ends if end.before is not None]
    most = max(scores)
    total = sum(exp(score - most) for score in scores)
    shares = [(end.classes()[:-1], exp(score - most) / total) for end, score in zip(ends, scores, strict=True)]
    return sorted(shares, key=lambda candidate: -candidate[1])


def _score(texts: Sequence[_Text], words: CharacterModel) -> None:
    """Have words score texts, all at once; those before them have been scored."""
    if not texts:
        return
    before = [text.before for text in texts if text.before is not None]
    contexts = np.array([text.context for text in before], np.int64)
    classes = np.array([text.last for text in texts], np.int64)
    scores, met = words.scores_of_met(contexts, classes, np.array([text.met for text in before]))
    weighted = (words.weight * (scores + np.where(classes == _END, 0.0, _BONUS))).tolist()
    behind = words.after(contexts, classes).tolist()
    for text, earlier, score, context, counts in zip(texts, before, weighted, behind, met, strict=True):
        text.score, text.context, text.met = earlier.score + score, context, counts


def _likely(columns: NDArray[np.float32]) -> list[list[int]]:
    """Return for each column the classes to try, besides the blank."""
    tried = min(_TRIED, columns.shape[1])
    classes = np.argpartition(-columns, tried - 1, axis=1)[:, :tried]
    likely = (np.take_along_axis(columns, classes, 1) > _LEAST) & (classes != _END)
    return [row[keep].tolist() for row, keep in zip(classes, likely, strict=True)]


def _sum(a: float, b: float) -> float:
    """Return the logarithm of the sum of two probabilities given as logarithms."""
    low, high = (a, b) if a < b else (b, a)
    return high if low == -inf else high + log1p(exp(low - high))
