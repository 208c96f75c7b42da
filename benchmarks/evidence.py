"""The tables of ``docs/evidence.md``, made again from the rows that are kept in ``docs/evidence``.

    python benchmarks/evidence.py            write them into the page
    python benchmarks/evidence.py --check    exit 1 where page and rows differ

A table stands between ``<!-- rows: NAME -->`` and ``<!-- end -->``; its rows are ``docs/evidence/NAME.parquet``: a
copy of the ``rows.parquet`` that ``dptr ablate recipes/NAME.toml`` wrote, or what ``benchmarks/NAME.py --out`` wrote
(NAME may end in a hyphen and what was measured). Where there are no rows the page says so.

A figure within the text stands between ``<!-- NAME; ARM; WHAT -->`` and ``<!-- -->``, of all test sets together, or of
the one that stands behind WHAT and another semicolon. WHAT is ``accuracy`` (per cent of words), ``more`` or ``less``
(points, than the arm that it is compared with), or one of these two with ``over seeds`` or ``over images`` behind it
(their interval). A figure that is not more, or not less, is an error: the sentence round it is wrong.
"""

from __future__ import annotations

import argparse
import re
import sys
from functools import cache
from pathlib import Path

from dptr.cache.errors import run_script
from dptr.cache.stores.files import write_text
from dptr.trainer.ablation.comparison import Result, compare
from dptr.trainer.ablation.rows import read_rows
from dptr.trainer.ablation.table import as_markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "evidence.md"
NOT_MEASURED = "*Not measured yet: there are no rows for this table.*"
FOLDED = '\n\n<details markdown="1">\n<summary>Each test set</summary>\n\n{}\n\n</details>'
_BLOCK = re.compile(r"(<!-- rows: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_FIGURE = re.compile(r"(<!-- ([\w-]+); ([^;>]+); ([^;>]+?)(?:; ([^;>]+))? -->).*?(<!-- -->)")
_MORE, _LESS = "more", "less"


def main() -> None:
    """Parse, make the tables, write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    arguments = parser.parse_args()
    before = PAGE.read_text(encoding="utf-8")
    after = filled_in(before, PAGE.with_suffix(""))
    if arguments.check:
        sys.exit("the page differs from its rows: run benchmarks/evidence.py" if before != after else 0)
    write_text(PAGE, after)


def filled_in(page: str, folder: Path) -> str:
    """Return the page with every table and every marked figure made from the rows in ``folder``.

    Raises:
        ValueError: a figure's rows, arm or measure are not there, or it is less where it is called more.
    """
    results = cache(lambda name: _results(folder / f"{name}.parquet"))
    page = _BLOCK.sub(lambda block: f"{block[1]}\n{_table(results(block[2]))}\n\n{block[3]}", page)
    return _FIGURE.sub(lambda mark: f"{mark[1]}{_figure(results(mark[2]), *mark.group(3, 4, 5))}{mark[6]}", page)


def _figure(results: list[Result], arm: str, what: str, test: str | None) -> str:
    """One figure of an arm, as the text of the page has it."""
    found = [result for result in results if result.arm == arm and result.test == (test or results[-1].test)]
    if not found:
        raise ValueError(f"no rows of arm {arm!r} on {test or 'all'}")
    (result,) = found
    if what == "accuracy":
        return f"{100 * result.accuracy:.1f}"
    direction, _, interval = what.partition(" ")
    intervals = {"over seeds": "over_seeds", "over images": "over_images"}
    if direction not in (_MORE, _LESS) or (interval and interval not in intervals):
        raise ValueError(f"{what!r} is no figure of arm {arm!r}")
    if result.difference is None or (result.difference.mean > 0) != (direction == _MORE):
        raise ValueError(f"arm {arm!r} does not read {direction} than the one that it is compared with")
    sign = 100 if direction == _MORE else -100
    if not interval:
        return f"{sign * result.difference.mean:.1f}"
    ends = getattr(result.difference, intervals[interval])
    if ends is None:
        raise ValueError(f"arm {arm!r} has no interval {interval}")
    low, high = sorted(sign * end for end in ends)
    return f"{low:.1f} to {high:.1f}"


def _table(results: list[Result]) -> str:
    """The table of all test sets together, those of each folded below it."""
    if not results:
        return NOT_MEASURED
    together = [result for result in results if result.test == results[-1].test]
    each = [result for result in results if result.test != results[-1].test]
    return as_markdown(together) + (FOLDED.format(as_markdown(each)) if each else "")


def _results(path: Path) -> list[Result]:
    rows = read_rows(path)
    return compare(rows) if rows else []


if __name__ == "__main__":
    run_script(main)
