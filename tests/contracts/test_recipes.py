"""Recipes open with their command, their hours and the score to expect, measured or said not to be."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_its_hours_and_the_score_to_expect(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    opening = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    for wanted in ("#   dptr ", "# Hours: ", "# Score to expect: "):
        assert any(line.startswith(wanted) for line in opening), wanted
