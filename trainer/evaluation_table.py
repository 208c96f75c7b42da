"""An evaluation as a table for people and as figures for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dptr.trainer.evaluate import PROTOCOLS, Evaluation


def table(result: Evaluation) -> str:
    """Return accuracies and 1-NED per set and protocol, both totals, and the most confident mistakes."""
    width = max([len(name) for name in result.sets] + [len("averaged over sets")])
    head = f"{'':<{width}} {'words':>6}  " + "  ".join(f"{'acc ' + p:>7} {'1-NED':>6}" for p in PROTOCOLS)
    lines = [head]
    for name, scores in result.sets.items():
        cells = "  ".join(f"{scores[p].accuracy:>7.2%} {scores[p].one_minus_ned:>6.3f}" for p in PROTOCOLS)
        lines.append(f"{name:<{width}} {scores[PROTOCOLS[0]].words:>6}  {cells}")
    for title, totals in (("weighted by words", result.weighted), ("averaged over sets", result.averaged)):
        cells = "  ".join(f"{totals[p]:>7.2%} {'':>6}" for p in PROTOCOLS)
        lines.append(f"{title:<{width}} {result.words:>6}  {cells}".rstrip())
    lengths = ", ".join(
        f"{length}: {share:.0%} of {words}" for length, (words, share) in result.accuracy_by_length.items()
    )
    lines += ["", f"accuracy by length: {lengths}"]
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
        "sets": {name: {p: asdict(score) for p, score in scores.items()} for name, scores in result.sets.items()},
        "metrics": {
            **{f"accuracy_{p}_weighted": result.weighted[p] for p in PROTOCOLS},
            **{f"accuracy_{p}_averaged": result.averaged[p] for p in PROTOCOLS},
        },
        "accuracy_by_length": {length: share for length, (_, share) in result.accuracy_by_length.items()},
        "mistakes": [asdict(mistake) for mistake in result.mistakes],
    }
