"""Where readings differ from the truth: accuracy by length with intervals, and which characters are taken for which."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from dptr.cache.choices import Units
from dptr.cache.units import number_of_units, split
from dptr.trainer.metrics import wilson
from dptr.trainer.report.charts import bars_with_intervals
from dptr.trainer.report.page import Chart, Table, text_row

_MOST_CONFUSIONS = 15
_MOST_BARS = 16
_NOTHING = "∅"


def accuracy_by_length(truths: Sequence[str], readings: Sequence[str], units: Units = "codepoint") -> Chart:
    """Draw the share of words read exactly, by units of the truth, with 95 % intervals."""
    hits: dict[int, list[bool]] = defaultdict(list)
    for truth, reading in zip(truths, readings, strict=True):
        hits[min(number_of_units(truth, units), _MOST_BARS)].append(truth == reading)
    bars = [
        (
            f"{length}+" if length == _MOST_BARS else str(length),
            sum(found) / len(found),
            *wilson(sum(found), len(found)),
        )
        for length, found in sorted(hits.items())
    ]
    right = sum(truth == reading for truth, reading in zip(truths, readings, strict=True))
    low, high = wilson(right, len(truths))
    caption = f"Read exactly, by length: {right:,} of {len(truths):,} in all, {right / len(truths):.1%}"
    return Chart(
        bars_with_intervals("accuracy by length", bars, "characters of the label"),
        f"{caption} (95 % interval {low:.1%} to {high:.1%})",
    )


def confusions(truths: Sequence[str], readings: Sequence[str], units: Units = "codepoint") -> Table:
    """List the commonest differences of aligned truth and reading; ``∅`` stands for no character."""
    counts: Counter[tuple[str, str]] = Counter()
    for truth, reading in ((split(t, units), split(r, units)) for t, r in zip(truths, readings, strict=True)):
        for edit in Levenshtein.editops(truth, reading):
            there = _NOTHING if edit.tag == "insert" else truth[edit.src_pos]
            counts[there, _NOTHING if edit.tag == "delete" else reading[edit.dest_pos]] += 1
    rows = [text_row(there, read, f"{count:,}") for (there, read), count in counts.most_common(_MOST_CONFUSIONS)]
    return Table(["there", "read as", "times"], rows)
