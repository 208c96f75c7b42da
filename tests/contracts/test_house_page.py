"""What the page on the layout names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`([\w/]+\.py|[\w/]+/)`", (ROOT / "docs" / "house.md").read_text(encoding="utf-8")))
    assert len(named) > 40
    missing = [name for name in named if not any(ROOT.glob(f"*/{name}")) and not any(ROOT.glob(f"*/*/{name}"))]
    assert [name for name in missing if not (ROOT / name).exists() and not any(ROOT.rglob(name))] == []
