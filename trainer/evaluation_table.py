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
    AS_WRITTEN: "exact",
}
_RULES = {
    "36": f"36, 62, 94: as PARSeq's loader has it: folded to ASCII, without words longer than {LONGEST} or emptied",
    CHINESE: "Chinese benchmark: NFKC; white space, case and traditional forms aside",
}


def table(result: Evaluation) -> str:
    """Return words, accuracy with interval and 1-NED per set and protocol, and the most confident mistakes."""
    rows = [row for name in result.sets for row in _rows_of_set(result, name)]
    if len(result.sets) > 1:
        rows += [row for protocol in result.protocols for row in _totals(result, protocol)]
    lines = [laid_out(["data", "compared", "words", "accuracy", "95 % interval", "1-NED"], rows, numbers=(2, 3, 4, 5))]
    lines += ["", *_left_out(result)]
    if len(result.accuracy_by_script) > 1:
        lines += ["", *_by_script(result)]
    lengths = ", ".join(
        f"{length}: {part:.0%} of {words}" for length, (words, part) in result.accuracy_by_length.items()
    )
    lines += ["", f"accuracy by length, exact: {lengths}"]
    lines += [f"expected calibration error of confidences, exact: {result.calibration_error:.3f}"]
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


def _rows_of_set(result: Evaluation, name: str) -> Iterator[tuple[str, ...]]:
    """Yield a row for each protocol of a set; 62 and 94 only where their figures are none that another row shows."""
    shown = [result.sets[name][protocol].score for protocol in result.protocols if protocol not in ("62", "94")]
    data = name
    for protocol in result.protocols:
        found = result.sets[name][protocol]
        if protocol in ("62", "94"):
            if found.score in shown:
                continue
            shown.append(found.score)
        accuracy = found.score.accuracy if found.score else None
        one_minus_ned = f"{found.score.one_minus_ned:.3f}" if found.score else "-"
        yield (
            data,
            _TITLES[protocol],
            f"{found.words:,}",
            _share(accuracy),
            _between(accuracy, found.words),
            one_minus_ned,
        )
        data = ""


def _totals(result: Evaluation, protocol: str) -> Iterator[tuple[str, ...]]:
    """Yield both totals of a protocol that every set shows."""
    if protocol in ("62", "94"):
        return
    words = sum(scores[protocol].words for scores in result.sets.values())
    weighted = result.weighted[protocol]
    yield "all words", _TITLES[protocol], f"{words:,}", _share(weighted), _between(weighted, words), ""
    yield "mean of sets", _TITLES[protocol], "", _share(result.averaged[protocol]), "", ""


def _by_script(result: Evaluation) -> list[str]:
    """Return accuracy by the script of the label, for data of several scripts."""
    rows = [(script, f"{words:,}", _share(part)) for script, (words, part) in result.accuracy_by_script.items()]
    return ["by the label's script, exact:", laid_out(["script", "words", "accuracy"], rows, numbers=(1, 2))]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _between(accuracy: float | None, words: int) -> str:
    """Return the ends of the interval that holds the accuracy on such words in 95 of 100 tests."""
    if accuracy is None:
        return "-"
    low, high = wilson(round(accuracy * words), words)
    return f"{100 * low:.1f}-{100 * high:.1f}"


def _left_out(result: Evaluation) -> list[str]:
    """Return the rules by which words do not count, and how many: figures of other programs can be compared then."""
    lines = [_RULES[protocol] for protocol in ("36", CHINESE) if protocol in result.protocols]
    for protocol in result.protocols:
        empty = sum(scores[protocol].empty for scores in result.sets.values())
        too_long = sum(scores[protocol].too_long for scores in result.sets.values())
        if empty or too_long:
            lines.append(f"  {_TITLES[protocol]}: left out: {empty:,} emptied, {too_long:,} too long")
    return lines


def _plain(result: ProtocolScore) -> dict[str, Any]:
    if result.score is None:
        return {"words": 0, "empty": result.empty, "too_long": result.too_long}
    interval = wilson(round(result.score.accuracy * result.words), result.words)
    return {**asdict(result.score), "accuracy_interval": interval, "empty": result.empty, "too_long": result.too_long}
