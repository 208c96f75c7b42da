"""What the page on the layout and the folders' docstrings name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [path.parent for top in ("cache", "pipeline", "trainer") for path in (ROOT / top).rglob("__init__.py")]


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`([\w/]+\.py|[\w/]+/)`", (ROOT / "docs" / "house.md").read_text(encoding="utf-8")))
    assert len(named) > 40
    missing = [name for name in named if not any(ROOT.glob(f"*/{name}")) and not any(ROOT.glob(f"*/*/{name}"))]
    assert [name for name in missing if not (ROOT / name).exists() and not any(ROOT.rglob(name))] == []


def test_a_folders_docstring_names_its_files() -> None:
    """In its own words, so a file that is not named is one that a newcomer is not led to."""
    silent = []
    for folder in FOLDERS:
        said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
        words = set(re.findall(r"\w+", said))
        silent += [str(path.relative_to(ROOT)) for path in folder.glob("[!_]*.py") if path.stem not in words]
    assert silent == []
