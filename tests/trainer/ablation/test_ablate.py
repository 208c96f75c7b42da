"""Whole ablations on ten words: rows, what a kill leaves, what is shared, and budgets in seconds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dptr.cache.errors import UserError
from dptr.cache.file_names import ABLATION_ROWS
from dptr.cache.sql.views import connect
from dptr.cache.workspace import Workspace
from dptr.cli import run_command
from dptr.trainer.ablation import ablate as ablation
from dptr.trainer.ablation import trial as one_trial
from dptr.trainer.ablation.ablate import AblationSummary, ablate
from dptr.trainer.ablation.crops import open_data
from dptr.trainer.ablation.grid import DataSet, load_grid
from dptr.trainer.ablation.rows import read_rows
from dptr.trainer.data.image_batches import ImageBatch, ImageBatches
from dptr.trainer.training.runs import Run

WORDS = ["red", "oak", "tin", "sky", "map", "owl", "ice", "bun", "fog", "hut"]
GRID = """
seeds = [1, 2]
base = "plain"
[decoder]
kind = "nrtr"
dim = 16
heads = 2
feed_forward = 16
memory_dim = 16
[encoder]
kind = "convolution"
dim = 16
channels = 4
[fmu]
queries = 4
heads = 2
[noise]
ratio = 0.0
[pretrain]
steps = 3
validation_share = 0.2
batch_size = 4
[finetune]
steps = 6
batch_size = 4
log_every = 2
validate_every = 6
checkpoint_every = 2
[data.crops]
path = "{folder}/crops"
[tests]
same = "{folder}/crops"
other = "{folder}/test"
[arms.plain]
[arms.pre-trained]
start = "pretrain"
"""


@pytest.fixture
def folder(tmp_path: Path, draw_crops: Any, write_prompts: Callable[[Path, Sequence[str]], Path]) -> Path:
    draw_crops(tmp_path / "crops", WORDS)
    draw_crops(tmp_path / "test", WORDS[:4])
    write_prompts(tmp_path / "prompts", WORDS)
    return tmp_path


def grid_file(folder: Path, more: str = "", **changes: str) -> Path:
    text = GRID.replace("{folder}", str(folder)) + more
    for old, new in changes.items():
        text = text.replace(old, new)
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


def workspace(folder: Path, name: str = "workspace") -> Workspace:
    made = Workspace(folder / name)
    if not made.prompts.exists():
        shutil.copytree(folder / "prompts", made.prompts)
    return made


def run(folder: Path, path: Path, name: str = "workspace", jobs: int = 1) -> AblationSummary:
    return ablate(load_grid(path), path.stem, str(path), workspace(folder, name), "cpu", jobs)


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what a clock said."""
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


def test_every_arm_seed_and_test_set_has_a_row_and_sql_sees_it(folder: Path) -> None:
    path = grid_file(folder)
    first = run(folder, path)
    assert (first.trials, first.computed, len(first.rows)) == (4, 4, 8)
    assert [(row["arm"], row["seed"], row["test"]) for row in first.rows] == [
        (arm, seed, test) for arm in ("plain", "pre-trained") for seed in (1, 2) for test in ("same", "other")
    ]
    for row in first.rows:
        assert row["accuracy"] == np.mean(row["right"])
        assert row["words"] == len(row["images"]) == (10 if row["test"] == "same" else 4)
        assert (row["steps"], row["pretrain_steps"]) == (6, 3 if row["arm"] == "pre-trained" else 0)
        assert row["seconds"] > 0
        assert (row["pretrain_seconds"] > 0) == (row["arm"] == "pre-trained")
    again = run(folder, path)
    assert (again.computed, again.rows) == (0, first.rows)
    asked = "select ablation, count(*), sum(words) from ablations group by all"
    assert connect(workspace(folder)).execute(asked).fetchall() == [("small", 8, 56)]


def test_a_renamed_arm_and_another_test_set_train_nothing_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, draw_crops: Any
) -> None:
    first = run(folder, grid_file(folder))
    draw_crops(folder / "third", WORDS[4:6])
    path = grid_file(folder)
    path.write_text(path.read_text().replace("pre-trained]", "text]").replace(f"{folder}/test", f"{folder}/third"))

    def trains(self: ImageBatches, number: int) -> ImageBatch:
        raise AssertionError("trained anew")

    monkeypatch.setattr(ImageBatches, "__call__", trains)
    second = run(folder, path)
    assert [row["arm"] for row in second.rows[4:]] == ["text"] * 4
    assert [row["run"] for row in second.rows] == [row["run"] for row in first.rows]


@pytest.mark.parametrize("cut", [3, 15])
def test_a_killed_ablation_goes_on_to_the_same_rows(folder: Path, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    path = grid_file(folder)
    whole = run(folder, path, "whole")
    make, drawn = ImageBatches.__call__, 0

    def dies(self: ImageBatches, number: int) -> ImageBatch:
        nonlocal drawn
        drawn += 1
        if drawn == cut:
            raise RuntimeError("killed")
        return make(self, number)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        patched.setattr(ImageBatches, "__call__", dies)
        run(folder, path, "cut")
    kept = read_rows(workspace(folder, "cut").ablations / "small" / ABLATION_ROWS)
    assert len(kept) == 2 * ((cut - 1) // 6)
    resumed = run(folder, path, "cut")
    assert resumed.computed == 4 - (cut - 1) // 6
    assert timeless(resumed.rows) == timeless(whole.rows)
    assert [row for row in resumed.rows if row in kept] == sorted(kept, key=lambda row: resumed.rows.index(row))


@pytest.mark.slow
def test_a_process_that_is_killed_outright_is_resumed_by_the_same_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = grid_file(folder)
    whole = run(folder, path, "whole")
    target = workspace(folder, "killed")
    command = ["ablate", str(path), "--workspace", str(target.root), "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "dptr", *command], env={**os.environ, "OMP_NUM_THREADS": "1"})
    written = target.ablations / "small" / ABLATION_ROWS
    deadline = time.monotonic() + 300
    while not written.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert written.is_file()
    capsys.readouterr()
    assert run_command([*command, "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["trials"], said["rows"]) == (4, 8)
    assert timeless(read_rows(written)) == timeless(whole.rows)
    assert "pre-trained" in (written.parent / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_side_by_side_gives_the_same_rows(folder: Path) -> None:
    path = grid_file(folder)
    assert timeless(run(folder, path, "beside", jobs=2).rows) == timeless(run(folder, path, "alone").rows)


def test_the_first_seed_is_compared_before_the_second_is_pre_trained(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, int]] = []
    pretraining, training = ablation.run_pretraining, ablation.run_trial

    def noted_pretraining(wanted: Any, *rest: Any, **named: Any) -> None:
        order.append(("pretraining", wanted.recipe.pretrain.seed))
        pretraining(wanted, *rest, **named)

    def noted_training(trial: Any, *rest: Any, **named: Any) -> Any:
        order.append(("trial", trial.seed))
        return training(trial, *rest, **named)

    monkeypatch.setattr(ablation, "run_pretraining", noted_pretraining)
    monkeypatch.setattr(ablation, "run_trial", noted_training)
    run(folder, grid_file(folder))
    assert order == [(kind, seed) for seed in (1, 2) for kind in ("pretraining", "trial", "trial")]


def test_arms_share_a_pre_training(folder: Path) -> None:
    few = '[arms.few]\nstart = "pretrain"\ndata.crops.crops = 8\n'
    result = run(folder, grid_file(folder, few, **{"seeds = [1, 2]": "seeds = [1]"}))
    assert {row["arm"]: row["crops"] for row in result.rows} == {"plain": 10, "pre-trained": 10, "few": 8}
    assert len(list((workspace(folder).ablations / "pretrained").iterdir())) == 1


def test_fewer_crops_are_a_part_of_more_and_another_seed_draws_others(folder: Path) -> None:
    grid = load_grid(grid_file(folder))

    def drawn(crops: int, seed: int) -> set[str]:
        recipe = grid.recipe_of("plain", "grid").replace("finetune", seed=seed)
        data = {"crops": DataSet(path=str(folder / "crops"), crops=crops)}
        return {sample.label for sample in open_data(data, "36", recipe).samples}

    assert len(drawn(3, 1)) == 3
    assert drawn(3, 1) < drawn(6, 1) < drawn(10, 1) == set(WORDS)
    assert len({frozenset(drawn(3, seed)) for seed in range(5)}) > 1


def test_a_budget_of_seconds_becomes_steps_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = '[arms.timed]\nseconds = 3.0\n[arms.timed-in-all]\nstart = "pretrain"\nseconds_in_all = 4.0\n'
    monkeypatch.setattr(one_trial, "_seconds_a_step", lambda *_: 0.5)
    assert load_grid(grid_file(folder, timed)).choices("timed-in-all").seconds is None
    monkeypatch.setattr(one_trial, "_run_seconds", lambda _: 1.6)
    result = run(folder, grid_file(folder, timed))
    steps = {row["arm"]: row["steps"] for row in result.rows}
    assert steps == {"plain": 6, "pre-trained": 6, "timed": 6, "timed-in-all": 4}


def test_a_budget_that_is_too_small_says_what_a_step_takes(folder: Path) -> None:
    with pytest.raises(UserError, match=r"arm 'timed', seed 2: 1e-09 seconds are too few: a step takes "):
        run(folder, grid_file(folder, "[arms.timed]\nseconds = 1e-9\n"))


def test_an_arms_speed_is_measured_once_and_kept(folder: Path) -> None:
    path = grid_file(folder, "[arms.timed]\nseconds = 3.0\n", **{"seeds = [1, 2]": "seeds = [1]"})
    first = run(folder, path)
    speeds = list((workspace(folder).ablations / "small" / "speeds").iterdir())
    assert [speed.suffix for speed in speeds] == [".json"]
    a_step = json.loads(speeds[0].read_text())["seconds_a_step"]
    assert {row["steps"] for row in first.rows if row["arm"] == "timed"} == {int(3.0 / a_step)}
    assert run(folder, path).computed == 0


def test_an_arm_trains_further_what_another_made_with_the_same_seed(folder: Path) -> None:
    chain = '[arms.further]\nstart = "arm:pre-trained"\n[arms.furthest]\nstart = "arm:further"\nfinetune.steps = 4\n'
    path = grid_file(folder, chain)
    result = run(folder, path)
    rows = {(row["arm"], row["seed"]): row for row in result.rows}
    runs = workspace(folder).ablations / "runs"
    for seed in (1, 2):
        chained = [rows[arm, seed] for arm in ("pre-trained", "further", "furthest")]
        assert [(row["pretrain_steps"], row["steps"]) for row in chained] == [(3, 6), (9, 6), (15, 4)]
        spent = [row["pretrain_seconds"] + row["seconds"] for row in chained]
        assert [row["pretrain_seconds"] for row in chained[1:]] == pytest.approx(spent[:-1])
        for before, after in pairwise(chained):
            assert Run.load(runs / after["run"]).data["from"][0] == before["run"]
    assert run(folder, path).computed == 0


def test_an_arm_behind_one_that_failed_is_not_run(folder: Path) -> None:
    wild = "finetune.learning_rate = 90.0\nfinetune.clip_norm = 0.0\nfinetune.steps = 24\n"
    chain = '[arms.further]\nstart = "arm:wild"\n[arms.furthest]\nstart = "arm:further"\n'
    with pytest.raises(UserError, match=r"^2 runs of small failed: arm 'wild', seed 1"):
        run(folder, grid_file(folder, f"[arms.wild]\n{wild}{chain}"))


def test_a_failing_arm_does_not_stop_the_others(folder: Path) -> None:
    path = grid_file(
        folder, "[arms.wild]\nfinetune.learning_rate = 90.0\nfinetune.clip_norm = 0.0\nfinetune.steps = 24\n"
    )
    with pytest.raises(UserError, match=r"2 runs of small failed: arm 'wild', seed 1: .*loss is nan"):
        run(folder, path)
    kept = read_rows(workspace(folder).ablations / "small" / ABLATION_ROWS)
    assert {row["arm"] for row in kept} == {"plain", "pre-trained"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[arms.plain]", '[arms.plain]\ndata.crops.crops = 11', "has 10 usable crops, not 11"),
        ("/crops\"\n[tests]", "/nowhere\"\nmade_by = 'dptr render-words'\n[tests]", "Make it first: dptr render-words"),
        ("[arms.plain]", "[arms.plain]\n[arms.twin]", "arms 'plain' and 'twin' train the same"),
        ('start = "pretrain"', 'start = "pretrain"\nprompts = "nowhere"', "Make it first: dptr embed-text"),
        ('start = "pretrain"', 'start = "some-run"', "no run at some-run"),
        ("ratio = 0.0", "ratio = 0.1", "Make it first: dptr build-orp-bank"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_before_anything_is_trained(folder: Path, old: str, new: str, said: str) -> None:
    path = grid_file(folder)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError) as raised:
        run(folder, path)
    assert said in str(raised.value)
    assert not (workspace(folder).ablations / "runs").exists()
