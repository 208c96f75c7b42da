"""The evidence page and the rows that it is made from agree."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from dptr.trainer.ablation.rows import SCHEMA, write_rows
from dptr.trainer.ablation.table import HOW_TO_READ

ROOT = Path(__file__).resolve().parents[2]


def evidence() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence", ROOT / "benchmarks" / "evidence.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_small_rows(path: Path) -> None:
    """Two arms of one seed on two images."""
    blank = dict.fromkeys(SCHEMA.names)
    common = {"seed": 1, "test": "signs", "test_sha256": "t", "words": 2, "one_minus_ned": 0.5, "steps": 3}
    common |= {"seconds": 1.0, "pretrain_seconds": 0.0, "images": ["a", "b"]}
    rows = [
        {**blank, **common, "arm": "plain", "base": True, "accuracy": 0.5, "right": [True, False]},
        {**blank, **common, "arm": "better", "base": False, "accuracy": 1.0, "right": [True, True]},
    ]
    write_rows(path, rows)


def test_every_table_of_the_page_is_what_its_rows_say() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert "<!-- rows: " in page
    assert evidence().filled_in(page, ROOT / "docs" / "evidence") == page


def test_every_figure_of_the_summary_is_taken_from_rows() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    summary = page[page.index("| does it help |") : page.index("All of it is small")]
    assert summary.count("<!-- -->") > 10
    by_hand = re.sub(r"<!-- [^>]+; [^>]+ -->.*?<!-- -->", "", summary)
    assert re.findall(r"\d+\.\d+", by_hand) == []


def test_no_line_begins_with_a_figure() -> None:
    """A line that begins with a comment is a block of HTML to Markdown, and ends the paragraph."""
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert re.findall(r"^ *<!-- [^>]*; .*", page, re.MULTILINE) == []


def test_a_marked_figure_becomes_what_the_rows_say(tmp_path: Path) -> None:
    write_small_rows(tmp_path / "small.parquet")
    marked = "<!-- small; better; accuracy -->1<!-- --> %, <!-- small; better; more -->2<!-- --> more than <!-- small; plain; accuracy; signs -->3<!-- -->."  # fmt: skip  # noqa: E501
    filled = evidence().filled_in(marked, tmp_path)
    assert re.sub(r"<!-- .*?-->", "", filled) == "100.0 %, 50.0 more than 50.0."


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ("small; better; less", "does not read less"),
        ("small; plain; more", "does not read more"),
        ("small; bettr; more", "no rows of arm 'bettr' on all"),
        ("other; better; more", "no rows of arm 'better'"),
        ("small; better; accuracy; plates", "no rows of arm 'better' on plates"),
        ("small; better; better", "'better' is no figure"),
        ("small; better; more over seeds", "has no interval over seeds"),
    ],
)
def test_a_figure_that_the_rows_do_not_bear_out_is_an_error(tmp_path: Path, mark: str, said: str) -> None:
    write_small_rows(tmp_path / "small.parquet")
    with pytest.raises(ValueError, match=said):
        evidence().filled_in(f"It reads <!-- {mark} -->1.0<!-- --> points.", tmp_path)


def test_the_page_opens_with_what_held_and_how_tables_are_read() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    opening, *_ = page.partition("<!-- rows: ")
    assert opening.index("## In short") < opening.index("## How it was measured")
    assert " ".join(HOW_TO_READ.split()) in " ".join(opening.split())


def test_what_sets_read_each_is_folded_below_what_they_read_together(tmp_path: Path) -> None:
    module = evidence()
    blank = dict.fromkeys(SCHEMA.names)
    common = {"seed": 1, "test_sha256": "t", "words": 1, "one_minus_ned": 0.5, "steps": 3, "accuracy": 1.0}
    common |= {"seconds": 1.0, "pretrain_seconds": 0.0, "images": ["a"], "right": [True], "arm": "plain", "base": True}
    write_rows(tmp_path / "two.parquet", [{**blank, **common, "test": name} for name in ("signs", "plates")])
    filled = module.filled_in("<!-- rows: two -->\n<!-- end -->", tmp_path)
    together, _, each = filled.partition('<details markdown="1">')
    assert "**all (2 words)**" in together
    assert "signs" not in together
    assert "**signs (1 words)**" in each
    assert "**plates (1 words)**" in each


def test_tables_of_evidence_have_a_grid_or_a_program_in_the_repository() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    for line in page.splitlines():
        if line.startswith("<!-- rows: "):
            name = line.split()[2]
            program = ROOT / "benchmarks" / f"{name.split('-')[0]}.py"
            assert (ROOT / "recipes" / f"{name}.toml").is_file() or program.is_file()


def test_rows_become_the_table_and_replace_an_older_one(tmp_path: Path) -> None:
    page = "before\n<!-- rows: small -->\nolder\n<!-- end -->\nafter\n"
    module = evidence()
    empty = module.filled_in(page, tmp_path)
    assert module.NOT_MEASURED in empty
    write_small_rows(tmp_path / "small.parquet")
    filled = module.filled_in(empty, tmp_path)
    assert "| better | 100.00 | 0.500 | plain | +50.00 | one seed |" in filled
    assert "older" not in filled
    assert module.NOT_MEASURED not in filled
    assert filled.startswith("before\n")
    assert filled.endswith("after\n")
    assert module.filled_in(filled, tmp_path) == filled
