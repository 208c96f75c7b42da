from __future__ import annotations

import pytest

from dptr.cache.charset import Charset
from dptr.trainer.metrics import score


def test_figures_by_hand() -> None:
    result = score(["open", "24h", "ab"], ["open", "24", "xbcd"])
    assert result.words == 3
    assert result.accuracy == pytest.approx(1 / 3)
    # Edit distances 0, 1 (of 3) and 3 (of 4: a to x, c and d added).
    assert result.one_minus_ned == pytest.approx(1 - (0 + 1 / 3 + 3 / 4) / 3)
    assert result.character_error_rate == pytest.approx(4 / 9)


def test_both_sides_are_mapped_to_the_charset() -> None:
    truths, readings = ["Don't", "CAFE"], ["dont", "caf-e"]
    assert score(truths, readings).accuracy == 0
    assert score(truths, readings, Charset.named("36")).accuracy == 1
    assert score(truths, readings, Charset.named("62")).accuracy == 0


def test_a_truth_that_the_charset_empties_still_counts() -> None:
    result = score(["!!", "ab"], ["?", "ax"], Charset.named("36"))
    assert (result.words, result.accuracy, result.character_error_rate) == (2, 0.5, 0.5)
    assert score(["!!"], ["a"], Charset.named("36")).accuracy == 0


def test_two_empty_texts_are_equal() -> None:
    result = score([""], [""])
    assert (result.accuracy, result.one_minus_ned, result.character_error_rate) == (1, 1, 0)


@pytest.mark.parametrize(("truths", "readings"), [([], []), (["a"], ["a", "b"])])
def test_nothing_to_compare_is_an_error(truths: list[str], readings: list[str]) -> None:
    with pytest.raises(ValueError, match="readings"):
        score(truths, readings)
