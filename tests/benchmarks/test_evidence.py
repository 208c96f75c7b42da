"""The evidence page and the rows that it is made from agree."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

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


def test_every_table_of_the_page_is_what_its_rows_say() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert "<!-- rows: " in page
    assert evidence().filled_in(page, ROOT / "docs" / "evidence") == page


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
    blank = dict.fromkeys(SCHEMA.names)
    common = {"seed": 1, "test": "signs", "test_sha256": "t", "words": 2, "one_minus_ned": 0.5, "steps": 3}
    common |= {"seconds": 1.0, "pretrain_seconds": 0.0, "images": ["a", "b"]}
    rows = [
        {**blank, **common, "arm": "plain", "base": True, "accuracy": 0.5, "right": [True, False]},
        {**blank, **common, "arm": "better", "base": False, "accuracy": 1.0, "right": [True, True]},
    ]
    write_rows(tmp_path / "small.parquet", rows)
    filled = module.filled_in(empty, tmp_path)
    assert "| better | 100.00 | 0.500 | plain | +50.00 | one seed |" in filled
    assert "older" not in filled
    assert module.NOT_MEASURED not in filled
    assert filled.startswith("before\n")
    assert filled.endswith("after\n")
    assert module.filled_in(filled, tmp_path) == filled
