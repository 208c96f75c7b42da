"""Prefix beam search: the text that picture and words together make likeliest.

CTC names a class in every column, each for itself. Where letters are blurred, many texts are nearly as likely as the
likeliest, and which of them are words decides. Candidates grow by a column at a time; all pictures of a batch go side
by side, so that the words are asked once a column for all of them.
Source: Hannun et al., First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional RNNs, 2014.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, log1p

import numpy as np
from numpy.typing import NDArray

from dptr.trainer.model.character_model import CharacterModel

#: A text as classes, and the share that it has of the probability of all texts that were kept.
Candidate = tuple[tuple[int, ...], float]
_Text = tuple[int, ...]

#: Texts that are kept at a column, and how far behind the likeliest one a text may fall, as a logarithm.
_KEPT, _BEHIND = 16, 6.0
#: Classes that are tried at a column, and the log-probability below which a class is not.
_TRIED, _LEAST = 5, -7.0
#: What a character's log-probability among words counts beside the picture's, and what each character adds, since
#: longer texts are less likely. Chosen on the training crops that the bundled recogniser's training left out.
_WEIGHT, _BONUS = 0.6, 1.3
_END = 0


def search(columns: Sequence[NDArray[np.float32]], words: CharacterModel) -> list[list[Candidate]]:
    """Find the likeliest texts of pictures.

    Args:
        columns: of each picture the log-probabilities of classes, (columns, classes); 0 is the blank and the end.
        words: says which texts are likely.

    Returns:
        of each picture the texts that were kept, the likeliest first.
    """
    beams = [_Beam(picture, words) for picture in columns]
    for column in range(max(map(len, columns), default=0)):
        going = [beam for beam in beams if column < len(beam.columns)]
        _score([(beam, beam.unscored(column)) for beam in going], words)
        for beam in going:
            beam.advance(column)
    _score([(beam, [(text, _END) for text in beam.kept]) for beam in beams], words)
    return [beam.candidates() for beam in beams]


class _Beam:
    """The likeliest texts of one picture so far."""

    def __init__(self, columns: NDArray[np.float32], words: CharacterModel) -> None:
        self.columns = columns.tolist()
        self.tried = _likely(columns)
        #: Text -> log-probabilities of all its alignments: of those that end in a blank, of the others.
        self.kept: dict[_Text, tuple[float, float]] = {(): (0.0, -inf)}
        #: Text -> what words make of it, and its context; with the end behind it, too.
        self.known: dict[_Text, tuple[float, int]] = {(): (0.0, words.begin)}

    def unscored(self, column: int) -> list[tuple[_Text, int]]:
        """Return what could follow at a column and has not been scored yet: (text, class behind it)."""
        return [(text, of) for text in self.kept for of in self.tried[column] if (*text, of) not in self.known]

    def advance(self, column: int) -> None:
        """Go over a column."""
        chances = self.columns[column]
        grown: dict[_Text, tuple[float, float]] = {}
        for text, (blank, character) in self.kept.items():
            total, last = _sum(blank, character), text[-1] if text else _END
            before = grown.get(text, (-inf, -inf))
            again = character + chances[last]
            grown[text] = (total + chances[_END], _sum(before[1], again))
            for of in self.tried[column]:
                # The same character anew needs a blank in between.
                reached = (blank if of == last else total) + chances[of]
                if reached > -inf:
                    longer = (*text, of)
                    ends = grown.get(longer, (-inf, -inf))
                    grown[longer] = (ends[0], _sum(ends[1], reached))
        self.kept = grown if len(grown) == len(self.kept) else self._likeliest(grown)

    def _likeliest(self, grown: dict[_Text, tuple[float, float]]) -> dict[_Text, tuple[float, float]]:
        scores = {text: _sum(*ends) + self.known[text][0] for text, ends in grown.items()}
        best = sorted(scores, key=lambda text: -scores[text])[:_KEPT]
        return {text: grown[text] for text in best if scores[text] > scores[best[0]] - _BEHIND}

    def candidates(self) -> list[Candidate]:
        """Return the texts that are left, the likeliest first."""
        scores = {text: _sum(*ends) + self.known[*text, _END][0] for text, ends in self.kept.items()}
        most = max(scores.values())
        total = sum(exp(score - most) for score in scores.values())
        shares = [(text, exp(score - most) / total) for text, score in scores.items()]
        return sorted(shares, key=lambda candidate: -candidate[1])


def _score(asked: Sequence[tuple[_Beam, list[tuple[_Text, int]]]], words: CharacterModel) -> None:
    """Have words score what beams ask, all at once, and tell them."""
    rows = [(beam, text, of, *beam.known[text]) for beam, pairs in asked for text, of in pairs]
    if not rows:
        return
    _, _, classes, _, contexts = zip(*rows, strict=True)
    scores = words.scores(np.array(contexts, np.int64), np.array(classes, np.int64)).tolist()
    for (beam, text, of, so_far, context), score in zip(rows, scores, strict=True):
        bonus = 0.0 if of == _END else _BONUS
        beam.known[*text, of] = (so_far + _WEIGHT * score + bonus, words.after(context, of))


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
