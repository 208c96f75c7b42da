from __future__ import annotations

import pytest

from dptr.cache.text.charset import Charset
from dptr.trainer.metrics import Score, calibration_error, chinese_score, field_score, score, score_as_written, wilson


def test_figures_by_hand() -> None:
    result = score(["open", "24h", "ab"], ["open", "24", "xbcd"])
    assert result.words == 3
    assert result.accuracy == pytest.approx(1 / 3)
    # Edit distances 0, 1 (of 3) and 3 (of 4: a to x, c and d added).
    assert result.one_minus_ned == pytest.approx(1 - (0 + 1 / 3 + 3 / 4) / 3)
    assert result.character_error_rate == pytest.approx(4 / 9)


def test_two_empty_texts_are_equal() -> None:
    result = score([""], [""])
    assert (result.accuracy, result.one_minus_ned, result.character_error_rate) == (1, 1, 0)


@pytest.mark.parametrize(("ground_truths", "predictions"), [([], []), (["a"], ["a", "b"])])
def test_nothing_to_compare_is_an_error(ground_truths: list[str], predictions: list[str]) -> None:
    with pytest.raises(ValueError, match="predictions"):
        score(ground_truths, predictions)


# What PARSeq's published loader (strhub/data/dataset.py and utils.py) makes of a label, worked out by hand: white space
# away, NFKD to ASCII, longer than 25 dropped, case folded for one case, other characters away, empty dropped.
LONG_BY_PUNCTUATION = "a" * 20 + "!" * 6
HAND_WORKED = [
    # raw, with 36 characters, with 62, with 94; None where the word is left out
    ("Hello", "hello", "Hello", "Hello"),
    ("two words", "twowords", "twowords", "twowords"),
    ("a\u00a0b", "ab", "ab", "ab"),  # a no-break space is white space
    ("Caf\u00e9", "cafe", "Cafe", "Cafe"),
    ("Stra\u00dfe", "strae", "Strae", "Strae"),  # \u00df has no decomposition and is no ASCII
    ("\ufb01ne", "fine", "fine", "fine"),
    ("\u00bd", "12", "12", "12"),  # decomposes to 1, fraction slash, 2
    ("\u2167", "viii", "VIII", "VIII"),
    ("\u201cYes\u201d", "yes", "Yes", "Yes"),
    ("Don't!", "dont", "Dont", "Don't!"),
    ("!?", None, None, "!?"),
    ("\u2026", None, None, "..."),
    ("\u65e5\u672c", None, None, None),
    ("\u65e5" * 30, None, None, None),  # emptied, not too long
    ("  ", None, None, None),
    ("aishahaleyes.blogspot.com", "aishahaleyesblogspotcom", "aishahaleyesblogspotcom", "aishahaleyes.blogspot.com"),
    ("x" * 26, None, None, None),
    (LONG_BY_PUNCTUATION, None, None, None),  # 20 characters of the 36 remain, but length is judged before
    ("x" * 13 + " " + "x" * 12, "x" * 25, "x" * 25, "x" * 25),
    ("a" * 24 + "\u00a8\u00a8", None, None, None),  # a lone diaeresis decomposes to a space that counts
    ("a" * 23 + "\u00a8\u00a8", "a" * 23, "a" * 23, "a" * 23),
]
TOO_LONG = {"x" * 26, LONG_BY_PUNCTUATION, "a" * 24 + "\u00a8\u00a8"}


@pytest.mark.parametrize(("column", "charset"), [(1, "36"), (2, "62"), (3, "94")])
def test_the_fields_protocol_keeps_folds_and_drops_as_parseqs_loader_does(column: int, charset: str) -> None:
    for case in HAND_WORKED:
        raw, label = case[0], case[column]
        wrong = field_score([raw], ["~"], Charset.named(charset))
        if label is None:
            assert wrong.score is None, raw
            assert (wrong.empty, wrong.too_long) == ((0, 1) if raw in TOO_LONG else (1, 0)), raw
        else:
            assert wrong.score is not None, raw
            assert wrong.score.accuracy == 0, raw
            right = field_score([raw], [label], Charset.named(charset))
            assert right.score == Score(1, 1.0, 1.0, 0.0), raw


def test_the_fields_protocol_counts_only_the_words_that_remain() -> None:
    ground_truths = [raw for raw, *_ in HAND_WORKED]
    for column, charset in ((1, "36"), (3, "94")):
        labels = [case[column] for case in HAND_WORKED]
        result = field_score(ground_truths, [label or "anything" for label in labels], Charset.named(charset))
        assert result.score is not None
        assert (result.words, result.score.accuracy) == (sum(label is not None for label in labels), 1.0)
        assert result.words + result.empty + result.too_long == len(ground_truths)


def test_as_written_nothing_is_folded_away_and_only_blank_labels_do_not_count() -> None:
    result = score_as_written(
        ["Caf\u00e9", "cafe", "x" * 40, "two words", " "], ["Cafe", "cafe", "x" * 40, "twowords", "a"]
    )
    assert result.score is not None
    assert (result.words, result.score.accuracy, result.empty, result.too_long) == (4, 0.75, 1, 0)


def test_the_chinese_benchmark_folds_width_case_white_space_and_traditional_forms() -> None:
    result = chinese_score(["龍門 客棧", "ＡＢＣ１２", "頭髮", "乾隆", " "], ["龙门客栈", "abc12", "头发", "干", "x"])
    assert result.score is not None
    assert (result.words, result.empty, result.score.accuracy) == (4, 1, 0.75)
    assert score_as_written(["龍"], ["龙"]).score == Score(1, 0.0, 0.0, 1.0)


def test_distances_count_what_a_person_sees_as_one_character() -> None:
    whole = score(["क्षत्रिय"], ["क्षत्रिक"], units="grapheme")
    assert whole.one_minus_ned == pytest.approx(2 / 3)
    assert score(["क्षत्रिय"], ["क्षत्रिक"]).one_minus_ned == pytest.approx(7 / 8)


@pytest.mark.parametrize(
    ("right", "words", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_intervals_are_those_that_newcombe_published(right: int, words: int, low: float, high: float) -> None:
    """Table I of Newcombe (1998), "Two-sided confidence intervals for the single proportion", method 3."""
    assert list(wilson(right, words)) == pytest.approx([low, high], abs=5e-5)


def test_calibration_error_is_the_mean_distance_of_confidence_and_accuracy() -> None:
    # Two of four are right at 0.5, all of two at 0.9: off by 0 and by 0.1.
    confidences, right = [0.5] * 4 + [0.9] * 2, [True, False, True, False, True, True]
    assert calibration_error(confidences, right) == pytest.approx(0.1 * 2 / 6)
    assert calibration_error([1.0], [False]) == 1.0
    assert calibration_error([1.0, 0.0], [True, False]) == 0.0
