"""The field's figures for reading: word accuracy and 1-NED, per charset protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from dptr.cache.charset import Charset


@dataclass(frozen=True)
class Score:
    """Figures over some words.

    Attributes:
        words: how many. accuracy: share read exactly. one_minus_ned: 1 - mean(edit distance / longer length).
        character_error_rate: all edit distances over all true characters.
    """

    words: int
    accuracy: float
    one_minus_ned: float
    character_error_rate: float


def score(truths: Sequence[str], readings: Sequence[str], charset: Charset | None = None) -> Score:
    """Compare readings with the truth, both mapped onto ``charset`` first when one is given.

    As in the field, a truth that the charset empties still counts as a word.

    Raises:
        ValueError: nothing to compare, or the two differ in number.
    """
    if not truths or len(truths) != len(readings):
        raise ValueError(f"{len(truths)} truths and {len(readings)} readings")
    if charset is not None:
        truths, readings = [charset.project(t) for t in truths], [charset.project(r) for r in readings]
    distances = [Levenshtein.distance(t, r) for t, r in zip(truths, readings, strict=True)]
    normalized = [distance / max(len(t), len(r), 1) for distance, t, r in zip(distances, truths, readings, strict=True)]
    return Score(
        words=len(truths),
        accuracy=sum(distance == 0 for distance in distances) / len(truths),
        one_minus_ned=1 - sum(normalized) / len(truths),
        character_error_rate=sum(distances) / max(sum(map(len, truths)), 1),
    )
