"""The field's figures for reading, word accuracy and 1-NED, by the field's protocol and on labels as they are written.

The protocol is that of PARSeq's published loader (``strhub/data/dataset.py`` and ``utils.py`` of baudm/parseq), which
the field's tables follow. Of a true label it removes white space, folds it to ASCII by NFKD, leaves the word out when
more than 25 characters remain, then folds case for a charset of one case, removes the characters outside the charset,
and leaves the word out when none remains. So each charset has its own number of words.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from rapidfuzz.distance import Levenshtein

from dptr.cache.choices import Units
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.cache.text.units import split

#: Words with more characters than this, after folding to ASCII, are no part of the field's evaluation.
LONGEST = 25


@dataclass(frozen=True)
class Score:
    """Figures over some words.

    Attributes:
        words: how many. accuracy: share read exactly. one_minus_ned: 1 - mean(edit distance / longer length).
        character_error_rate: all edit distances over all true units.
    """

    words: int
    accuracy: float
    one_minus_ned: float
    character_error_rate: float


@dataclass(frozen=True)
class ProtocolScore:
    """Figures of some words by one protocol.

    Attributes:
        score: figures of the words that count; None when there is none.
        empty: words left out because nothing of the label remains.
        too_long: words left out because the label is too long.
    """

    score: Score | None
    empty: int
    too_long: int

    @property
    def words(self) -> int:
        """Number of words that count."""
        return self.score.words if self.score else 0


def score(ground_truths: Sequence[str], predictions: Sequence[str], units: Units = "codepoint") -> Score:
    """Compare predictions with the ground truth; distances and lengths count ``units``.

    Raises:
        ValueError: nothing to compare, or the two differ in number.
    """
    if not ground_truths or len(ground_truths) != len(predictions):
        raise ValueError(f"{len(ground_truths)} ground truths and {len(predictions)} predictions")
    pairs = [(split(t, units), split(r, units)) for t, r in zip(ground_truths, predictions, strict=True)]
    distances = [Levenshtein.distance(*pair) for pair in pairs]
    normalized = [distance / max(len(t), len(r), 1) for distance, (t, r) in zip(distances, pairs, strict=True)]
    return Score(
        words=len(ground_truths),
        accuracy=sum(distance == 0 for distance in distances) / len(ground_truths),
        one_minus_ned=1 - sum(normalized) / len(ground_truths),
        character_error_rate=sum(distances) / max(sum(len(t) for t, _ in pairs), 1),
    )


def calibration_error(confidences: Sequence[float], right: Sequence[bool], bins: int = 15) -> float:
    """Return the expected calibration error: how far confidence is from accuracy, 0 to 1, weighted over equal bins.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    places = (np.asarray(confidences) * bins).astype(int).clip(0, bins - 1)
    differences = np.asarray(confidences, np.float64) - np.asarray(right, np.float64)
    sums = np.bincount(places, differences, minlength=bins)
    return float(np.abs(sums).sum() / len(right))


def wilson(right: int, words: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a share, ends between 0 and 1 (Wilson 1927); narrower ones lie when words are few."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, spread = right / words, z * z / words
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / words + spread / (4 * words)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def field_score(raw_ground_truths: Sequence[str], predictions: Sequence[str], charset: Charset) -> ProtocolScore:
    """Compare as the field does with ``charset``.

    Args:
        raw_ground_truths: labels as they are stored.
        predictions: of the same words. They are folded to ASCII too, which changes nothing for a recogniser of the
            field's 94 characters and is fair to one that can write é.
        charset: the test's characters.
    """
    folded = [to_ascii(raw) for raw in raw_ground_truths]
    too_long = [len(label) > LONGEST for label in folded]
    ground_truths = ["" if drop else charset.project(label) for label, drop in zip(folded, too_long, strict=True)]
    pairs = [(t, charset.project(to_ascii(r))) for t, r in zip(ground_truths, predictions, strict=True) if t]
    return _protocol_score(pairs, len(ground_truths), sum(too_long))


def score_as_written(
    raw_ground_truths: Sequence[str],
    predictions: Sequence[str],
    units: Units = "codepoint",
    normalization: Normalization = Normalization(),  # noqa: B008
) -> ProtocolScore:
    """Compare whole labels of any length and any characters: nothing is folded away.

    Args:
        raw_ground_truths: labels as they are stored. predictions: of the same words. units: in which distances are
            counted.
        normalization: of both; white space counts where it keeps spaces.
    """
    form = normalization.apply
    pairs = [
        (form(ground_truth), form(prediction))
        for ground_truth, prediction in zip(raw_ground_truths, predictions, strict=True)
    ]
    return _protocol_score([pair for pair in pairs if pair[0]], len(pairs), 0, units)


def chinese_score(
    raw_ground_truths: Sequence[str], predictions: Sequence[str], units: Units = "codepoint"
) -> ProtocolScore:
    """Compare as the Chinese benchmark does: full width is half, and case, white space and traditional forms go aside.

    Args:
        raw_ground_truths: labels as they are stored. predictions: of the same words. units: in which distances are
            counted.

    Source: Chen et al., Benchmarking Chinese Text Recognition, 2021.

    Raises:
        UserError: the package that folds traditional Chinese is missing.
    """
    form = Normalization(simplified=True).apply
    pairs = [
        (form(ground_truth).lower(), form(prediction).lower())
        for ground_truth, prediction in zip(raw_ground_truths, predictions, strict=True)
    ]
    return _protocol_score([pair for pair in pairs if pair[0]], len(pairs), 0, units)


def _protocol_score(
    pairs: list[tuple[str, str]], words: int, too_long: int, units: Units = "codepoint"
) -> ProtocolScore:
    figures = score([t for t, _ in pairs], [r for _, r in pairs], units=units) if pairs else None
    return ProtocolScore(figures, words - len(pairs) - too_long, too_long)


def to_ascii(text: str) -> str:
    """Remove white space, then fold to ASCII; in this order, as the length between the two is what counts."""
    return unicodedata.normalize("NFKD", "".join(text.split())).encode("ascii", "ignore").decode("ascii")
