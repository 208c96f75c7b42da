"""Grids of trainings: what is run, shared and resumed, how arms are compared, and one grid at toy size."""

from __future__ import annotations

import json
import runpy
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dptr.cache.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "ablations" / "ablate.py"
ablate = runpy.run_path(str(SCRIPT))

GRID = """
seeds = [1, 2, 3]
protocol = "36"
set = ["noise.ratio=0"]
finetune = ["crops"]
[tests]
seen = "test"
[arms.scratch]
[arms.pre-trained]
start = "pretrain"
[arms.longer]
start = "pretrain"
set = ["finetune.steps=9"]
against = "pre-trained"
[arms.further]
start = "arm:longer"
finetune = ["--charset", "36"]
[arms.unseen]
start = "pretrain"
train = false
"""


class Dptr:
    """Answers as dptr does: every run reads the first of three words, pre-trained ones the second too."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.commands: list[list[str]] = []
        self.fail_at = fail_at

    def __call__(self, command: Sequence[str]) -> dict[str, Any]:
        if len(self.commands) == self.fail_at:
            raise KeyboardInterrupt
        self.commands.append(list(command))
        if command[0] == "sql":
            trained = [made for made in self.commands if made[0] in ("pretrain", "finetune")]
            scratch = "none" in trained[-1]
            return {"result": [["1", "One", "one"], ["2", "two", "x" if scratch else "two"], ["3", "six", "x"]]}
        out = command[command.index("-o") + 1] if "-o" in command else ""
        return {"command": command[0], "out": out, "seconds": 2.0, "steps": 5}


def grid_in(folder: Path, text: str = GRID) -> Any:
    (folder / "grid.toml").write_text(text)
    return ablate["load_grid"](folder / "grid.toml")


def test_trials_share_pre_trainings_and_each_seed_has_its_own(tmp_path: Path) -> None:
    dptr = Dptr()
    ablate["run"](grid_in(tmp_path), tmp_path / "rows.jsonl", tmp_path, dptr)
    ran = [command for command in dptr.commands if command[0] in ("pretrain", "finetune")]
    assert [command[0] for command in ran].count("pretrain") == 3, "one for each seed"
    assert [command[0] for command in ran].count("finetune") == 12
    assert len({command[command.index("-o") + 1] for command in ran}) == len(ran)
    assert not any("--set=finetune.steps=9" in command for command in ran if command[0] == "pretrain")
    further = ran[[("--charset" in command) for command in ran].index(True)]
    longer = next(command for command in ran if "--set=finetune.steps=9" in command)
    assert further[further.index("--from") + 1] == longer[longer.index("-o") + 1]


def test_a_cut_grid_resumes_and_comes_to_the_same(tmp_path: Path) -> None:
    grid, whole, cut = grid_in(tmp_path), tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    rows = ablate["run"](grid, whole, tmp_path, Dptr())
    with pytest.raises(KeyboardInterrupt):
        ablate["run"](grid, cut, tmp_path, Dptr(fail_at=11))
    before = len(cut.read_text().splitlines())
    assert 0 < before < len(rows)
    cut.write_text(cut.read_text() + '{"half a li')
    dptr = Dptr()
    assert ablate["run"](grid, cut, tmp_path, dptr) == rows
    assert sum(command[0] == "evaluate" for command in dptr.commands) == len(rows) - before
    assert ablate["run"](grid, cut, tmp_path, Dptr(fail_at=0)) == rows, "nothing is run again"


def test_arms_are_compared_in_pairs(tmp_path: Path) -> None:
    grid = grid_in(tmp_path)
    lines = ablate["compare"](grid, ablate["run"](grid, tmp_path / "rows.jsonl", tmp_path, Dptr()))
    table = {cells[1]: dict(zip([*ablate["_COLUMNS"], *ablate["_TIMES"]], cells, strict=True)) for cells in lines}
    assert table["scratch"]["accuracy, %"] == "33.33 ± 0.00"
    assert table["pre-trained"]["points"] == "+33.33"
    assert table["longer"]["compared with"] == "pre-trained"
    low, _, high = table["pre-trained"]["over images"].split()
    assert float(low) == 0.0
    assert float(high) == 100.0
    assert table["unseen"]["seconds"] == "0"


def test_the_interval_over_seeds_is_students(tmp_path: Path) -> None:
    """Differences 1, 2 and 3 points: 2 ± 4.303 / sqrt(3)."""
    grid = grid_in(tmp_path, GRID.split("[arms.longer]")[0])
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "test": "seen",
            "images": list(range(100)),
            "right": [1] * right + [0] * (100 - right),
        }
        | dict.fromkeys(("steps", "seconds", "pretrain_seconds"), 0)
        for arm, gain in (("scratch", 0), ("pre-trained", 1))
        for seed in (1, 2, 3)
        for right in [50 + gain * seed]
    ]
    line = ablate["compare"](grid, rows)[1]
    assert line[4:6] == ["+2.00", "-0.48 to +4.48"]
    rows[0]["images"] = [7]
    with pytest.raises(UserError, match="'seen' changed"):
        ablate["compare"](grid, rows)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (GRID.replace("protocol", "protocl"), "unknown key 'protocl'"),
        (GRID.replace("train = false", "trian = false"), "unknown key 'trian'"),
        (GRID.replace("arm:longer", "arm:long"), "names an arm 'long'"),
        (GRID.split("[arms")[0], "names no arms"),
        ("seeds = ", "is no grid"),
    ],
)
def test_a_wrong_grid_is_named(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        grid_in(tmp_path, text)


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "ablations").glob("*.toml")), ids=lambda path: path.stem)
def test_the_grids_here_load(path: Path) -> None:
    assert ablate["load_grid"](path).arms


@pytest.mark.slow
def test_a_grid_at_toy_size(
    tmp_path: Path, draw_crops: Callable[[Path, Sequence[str]], Path], forked_python: str
) -> None:
    words = [a + b + c for a in "bcd" for b in "aeiou" for c in "ln"]
    crops, test = draw_crops(tmp_path / "crops", words), draw_crops(tmp_path / "test", words[:4])
    small = ["decoder.dim=16", "decoder.heads=2", "decoder.feed_forward=16", "encoder.dim=16", "encoder.heads=2"]
    small += ["encoder.layers=1", "fmu.queries=4", "fmu.heads=2", "finetune.steps=2", "finetune.batch_size=4"]
    grid = f"""
seeds = [1, 2]
set = {json.dumps(small)}
finetune = [{json.dumps(str(crops))}, "--charset", "36"]
tests = {{ drawn = {json.dumps(str(test))} }}
[arms.fmu]
[arms."no fmu"]
set = ["fmu.kind=none"]
"""
    (tmp_path / "toy.toml").write_text(grid)
    command = [forked_python, str(SCRIPT), "toy.toml", "--workspace", "ws", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[3].startswith("| drawn | no fmu |")
    assert len((tmp_path / "ws" / "ablations" / "toy.jsonl").read_text().splitlines()) == 4
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert again.stdout == done.stdout
    assert "dptr" not in again.stderr
