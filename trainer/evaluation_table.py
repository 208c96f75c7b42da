"""An evaluation as a table for people and as figures for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from dptr.cache.table import table as laid_out
from dptr.trainer.evaluate import AS_WRITTEN, CHINESE, FIELD_PROTOCOLS, Evaluation
from dptr.trainer.metrics import LONGEST, ProtocolScore, wilson

_TITLES = {
    **{name: f"{name} characters" for name in FIELD_PROTOCOLS},
    CHINESE: "Chinese benchmark",
    AS_WRITTEN: "as written",
}
_RULES = {
    "36": f"36, 62, 94: as PARSeq's loader has it: folded to ASCII, without words longer than {LONGEST} or emptied",
    CHINESE: "Chinese benchmark: NFKC; white space, case and traditional forms aside",
}


def table(result: Evaluation) -> str:
    """Return words, accuracy with interval and 1-NED per protocol and set, and the most confident mistakes."""
    rows = [row for protocol in result.protocols for row in _rows(result, protocol)]
    head = ["", "data", "words", "accuracy", "95 % interval", "1-NED"]
    lines = [laid_out(head, rows, numbers=(2, 3, 4, 5)), "", *_left_out(result)]
    if len(result.accuracy_by_script) > 1:
        lines += ["", *_by_script(result)]
    lengths = ", ".join(
        f"{length}: {part:.0%} of {words}" for length, (words, part) in result.accuracy_by_length.items()
    )
    lines += ["", f"accuracy by length, as written: {lengths}"]
    lines += [f"expected calibration error of confidences, as written: {result.calibration_error:.3f}"]
    if result.mistakes:
        mistakes = [(m.key, m.ground_truth, m.prediction, f"{m.confidence:.3f}") for m in result.mistakes[:10]]
        lines += [
            "",
            "most confident mistakes:",
            laid_out(["image", "ground_truth", "prediction", "confidence"], mistakes, (3,)),
        ]
    return "\n".join(lines)


def figures(result: Evaluation) -> dict[str, Any]:
    """Return everything as plain values; ``metrics`` holds the totals."""
    return {
        "rows": result.words,
        "computed": result.words,
        "quarantined": result.quarantined,
        "seconds": result.seconds,
        "sets": {name: {p: _plain(scores[p]) for p in result.protocols} for name, scores in result.sets.items()},
        "metrics": {
            **{f"accuracy_{p}_weighted": result.weighted[p] for p in result.protocols},
            **{f"accuracy_{p}_averaged": result.averaged[p] for p in result.protocols},
            "calibration_error": result.calibration_error,
        },
        "accuracy_by_length": {length: share for length, (_, share) in result.accuracy_by_length.items()},
        "accuracy_by_script": {script: share for script, (_, share) in result.accuracy_by_script.items()},
        "mistakes": [asdict(mistake) for mistake in result.mistakes],
    }


def _rows(result: Evaluation, protocol: str) -> Iterator[tuple[str, ...]]:
    """Yield a row for each set and for both totals; the first says which protocol they are of."""
    title = _TITLES[protocol]
    for name, scores in result.sets.items():
        found = scores[protocol]
        accuracy = found.score.accuracy if found.score else None
        one_minus_ned = f"{found.score.one_minus_ned:.3f}" if found.score else "-"
        yield title, name, f"{found.words:,}", _share(accuracy), _between(accuracy, found.words), one_minus_ned
        title = ""
    weighted, words = result.weighted[protocol], sum(scores[protocol].words for scores in result.sets.values())
    yield "", "weighted by words", "", _share(weighted), _between(weighted, words), ""
    yield "", "averaged over sets", "", _share(result.averaged[protocol]), "", ""


def _by_script(result: Evaluation) -> list[str]:
    """Return accuracy by the script of the label, for data of several scripts."""
    rows = [(script, f"{words:,}", _share(part)) for script, (words, part) in result.accuracy_by_script.items()]
    return ["by the label's script, as written:", laid_out(["script", "words", "accuracy"], rows, numbers=(1, 2))]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _between(accuracy: float | None, words: int) -> str:
    """Return the ends of the interval that holds the accuracy on such words in 95 of 100 tests."""
    if accuracy is None:
        return "-"
    low, high = wilson(round(accuracy * words), words)
    return f"{100 * low:.1f}-{100 * high:.1f}"


def _left_out(result: Evaluation) -> list[str]:
    """Return the rule by which words do not count, so that figures can be compared with those of other programs."""
    lines = [_RULES[protocol] for protocol in ("36", CHINESE) if protocol in result.protocols]
    for protocol in result.protocols:
        empty = sum(scores[protocol].empty for scores in result.sets.values())
        too_long = sum(scores[protocol].too_long for scores in result.sets.values())
        counted = sum(scores[protocol].words for scores in result.sets.values())
        lines.append(
            f"  {_TITLES[protocol]}: {counted:,} words count; left out: {empty:,} emptied, {too_long:,} too long"
        )
    return lines


def _plain(result: ProtocolScore) -> dict[str, Any]:
    if result.score is None:
        return {"words": 0, "empty": result.empty, "too_long": result.too_long}
    interval = wilson(round(result.score.accuracy * result.words), result.words)
    return {**asdict(result.score), "accuracy_interval": interval, "empty": result.empty, "too_long": result.too_long}
