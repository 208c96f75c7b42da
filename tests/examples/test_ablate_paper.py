"""The grid of the paper's ablations at toy size, cut between commands and resumed."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from dptr.cli import run_command

ROOT = Path(__file__).resolve().parents[2]
GRID = ROOT / "examples" / "ablations" / "paper.toml"
ablate = runpy.run_path(str(ROOT / "examples" / "ablations" / "ablate.py"))


class InThisProcess:
    """Runs dptr's commands in a workspace, and is interrupted before the command number ``cut``."""

    def __init__(self, workspace: Path, cut: int | None = None) -> None:
        self.workspace, self.cut, self.ran = workspace, cut, list[str]()

    def __call__(self, command: Sequence[str]) -> dict[str, Any]:
        if len(self.ran) == self.cut:
            raise KeyboardInterrupt
        self.ran.append(command[0])
        device = [] if command[0] == "sql" else ["--device", "cpu"]
        with redirect_stdout(StringIO()) as said:
            assert run_command([*command, *device, "--workspace", str(self.workspace), "--json", "--quiet"]) == 0, (
                command
            )
        result: dict[str, Any] = json.loads(said.getvalue().splitlines()[-1])
        return result


def at_toy_size(toy: Path) -> Any:
    """The grid with the toy recipe, one seed, one test set, and steps in proportion: 25,000 become one."""
    text = GRID.read_text(encoding="utf-8").replace('recipe = "paper"', f'recipe = "{toy / "recipe.toml"}"')
    text = text.replace("seeds = [1, 2, 3]", "seeds = [1]")
    text = re.sub(r"\.steps=(\d+)", lambda found: f".steps={int(found[1]) // 25_000}", text)
    text = re.sub(r'^"(?!IIIT5K)\w+" = "data/test.*\n', "", text, flags=re.MULTILINE)
    (toy / "grid.toml").write_text(text, encoding="utf-8")
    return ablate["load_grid"](toy / "grid.toml")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_grid_cut_and_resumed_has_a_row_for_each_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["toy.py", "."])
    with redirect_stdout(StringIO()):
        runpy.run_path(str(ROOT / "examples" / "reproduce" / "toy.py"), run_name="__main__")
    toy_clip = ["--clip", str(tmp_path / "clip")]
    corpus = ["embed-text", "data/synth/MJ/train", "data/synth/ST", *toy_clip, "--ascii", "--charset", "94", "--quiet"]
    assert run_command([*corpus, "--context", "content", "-o", "content/prompts"]) == 0
    bank = ["build-orp-bank", "photos", *toy_clip, "--crops", "whole", "--quiet"]
    workspace = tmp_path / "workspace"
    assert run_command([*corpus, "--context", "full", "--workspace", str(workspace)]) == 0
    assert run_command([*bank, "--workspace", str(workspace)]) == 0
    grid = at_toy_size(tmp_path)
    for cut in (1, 6, 11):
        with pytest.raises(KeyboardInterrupt):
            ablate["run"](grid, workspace / "rows.jsonl", workspace, InThisProcess(workspace, cut))
    dptr = InThisProcess(workspace)
    rows = ablate["run"](grid, workspace / "rows.jsonl", workspace, dptr)
    assert len(rows) == len({row["arm"] for row in rows}) == 14
    assert 0 < dptr.ran.count("evaluate") < 14, "rows from before the cuts are not made again"
    weights = [path.read_bytes() for path in workspace.glob("runs/*/checkpoints/last/model.safetensors")]
    assert len(weights) == len(set(weights)) == 21
    assert len(ablate["compare"](grid, rows)) == 14
