"""The tables of ``docs/evidence.md``, made again from the rows that are kept in ``docs/evidence``.

    python benchmarks/evidence.py            write them into the page
    python benchmarks/evidence.py --check    exit 1 where page and rows differ

A table stands between ``<!-- rows: NAME -->`` and ``<!-- end -->``; its rows are ``docs/evidence/NAME.parquet``: a
copy of the ``rows.parquet`` that ``dptr ablate recipes/NAME.toml`` wrote, or what ``benchmarks/NAME.py --out`` wrote
(NAME may end in a hyphen and what was measured). Where there are no rows the page says so.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from dptr.cache.stores.files import write_text
from dptr.trainer.ablation.comparison import compare
from dptr.trainer.ablation.rows import read_rows
from dptr.trainer.ablation.table import as_markdown

PAGE = Path(__file__).resolve().parents[1] / "docs" / "evidence.md"
NOT_MEASURED = "*Not measured yet: there are no rows for this table.*"
FOLDED = '\n\n<details markdown="1">\n<summary>Each test set</summary>\n\n{}\n\n</details>'
_BLOCK = re.compile(r"(<!-- rows: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


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
    """Return the page with every table made from the rows in ``folder``."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{_table(folder / f'{block[2]}.parquet')}\n\n{block[3]}", page)


def _table(path: Path) -> str:
    """The table of all test sets together, those of each folded below it."""
    rows = read_rows(path)
    if not rows:
        return NOT_MEASURED
    results = compare(rows)
    together = [result for result in results if result.test == results[-1].test]
    each = [result for result in results if result.test != results[-1].test]
    return as_markdown(together) + (FOLDED.format(as_markdown(each)) if each else "")


if __name__ == "__main__":
    main()
