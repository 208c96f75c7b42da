"""An evaluation as a table for people and as figures for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dptr.trainer.evaluate import AS_WRITTEN, FIELD_PROTOCOLS, PROTOCOLS, Evaluation
from dptr.trainer.metrics import LONGEST, ProtocolScore

_TITLES = {**{name: f"{name} characters" for name in FIELD_PROTOCOLS}, AS_WRITTEN: "as written"}
_CELL = "{:>6} {:>7} {:>6}"


def table(result: Evaluation) -> str:
    """Return words, accuracy and 1-NED per set and protocol, what was left out, and the most confident mistakes."""
    totals = {"weighted by words": result.weighted, "averaged over sets": result.averaged}
    width = max(len(name) for name in [*result.sets, *totals])
    lines = [
        _row("", [f"{_TITLES[p]:^21}" for p in PROTOCOLS], width),
        _row("", [_CELL.format("words", "acc", "1-NED")] * len(PROTOCOLS), width),
    ]
    lines += [_row(name, [_cell(scores[p]) for p in PROTOCOLS], width) for name, scores in result.sets.items()]
    for title, values in totals.items():
        lines.append(_row(title, [_CELL.format("", _share(values[p]), "") for p in PROTOCOLS], width))
    lines += ["", *_left_out(result)]
    lengths = ", ".join(
        f"{length}: {part:.0%} of {words}" for length, (words, part) in result.accuracy_by_length.items()
    )
    lines += ["", f"accuracy by length, as written: {lengths}"]
    if result.mistakes:
        lines += ["", "most confident mistakes (image, truth, reading, confidence):"]
        lines += [f"  {m.key}  {m.truth}  {m.reading}  {m.confidence:.3f}" for m in result.mistakes[:10]]
    return "\n".join(lines)


def figures(result: Evaluation) -> dict[str, Any]:
    """Return everything as plain values; ``metrics`` holds the totals."""
    return {
        "rows": result.words,
        "computed": result.words,
        "quarantined": result.quarantined,
        "seconds": result.seconds,
        "sets": {name: {p: _plain(scores[p]) for p in PROTOCOLS} for name, scores in result.sets.items()},
        "metrics": {
            **{f"accuracy_{p}_weighted": result.weighted[p] for p in PROTOCOLS},
            **{f"accuracy_{p}_averaged": result.averaged[p] for p in PROTOCOLS},
        },
        "accuracy_by_length": {length: share for length, (_, share) in result.accuracy_by_length.items()},
        "mistakes": [asdict(mistake) for mistake in result.mistakes],
    }


def _row(name: str, cells: list[str], width: int) -> str:
    return f"{name:<{width}}  {'  '.join(cells)}".rstrip()


def _cell(result: ProtocolScore) -> str:
    if result.score is None:
        return _CELL.format(0, "-", "-")
    return _CELL.format(result.words, _share(result.score.accuracy), f"{result.score.one_minus_ned:.3f}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _left_out(result: Evaluation) -> list[str]:
    """Say by which rule words do not count, so that figures can be compared with those of other programs."""
    lines = [f"36, 62, 94: as PARSeq's loader has it: folded to ASCII, without words longer than {LONGEST} or emptied"]
    for protocol in PROTOCOLS:
        empty = sum(scores[protocol].empty for scores in result.sets.values())
        too_long = sum(scores[protocol].too_long for scores in result.sets.values())
        counted = sum(scores[protocol].words for scores in result.sets.values())
        lines.append(
            f"  {_TITLES[protocol]}: {counted:,} words count; left out: {empty:,} emptied, {too_long:,} too long"
        )
    return lines


def _plain(result: ProtocolScore) -> dict[str, Any]:
    figures = asdict(result.score) if result.score else {"words": 0}
    return {**figures, "empty": result.empty, "too_long": result.too_long}
