"""Runs: which settings make another one, and which of several is the newest that can be used."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.text.charset import Charset
from dptr.cache.workspace import Workspace
from dptr.trainer.finetune import parameter_groups
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.named_models import model_path, newest_run, start_named
from dptr.trainer.recipe import Recipe
from dptr.trainer.training import runs
from dptr.trainer.training.checkpoint import load_state, save_checkpoint

CHARSET = Charset("abc")


def start(folder: Path, recipe: Recipe | None = None) -> runs.Run:
    return runs.start_or_continue(folder, "pretrain", recipe or Recipe(), CHARSET, 8, {"prompts": "p"})


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("pretrain", {"workers": 3, "log_every": 7, "checkpoint_every": 9}),
        ("finetune", {"steps": 5}),
        ("encoder", {"layers": 2}),
    ],
)
def test_how_a_run_is_carried_out_makes_no_other_run(tmp_path: Path, section: str, values: dict[str, Any]) -> None:
    start(tmp_path / "run")
    changed = Recipe().replace(section, **values)
    assert runs.identity_digest("pretrain", changed, {}) == runs.identity_digest("pretrain", Recipe(), {})
    assert start(tmp_path / "run", changed).recipe == changed
    assert runs.Run.load(tmp_path / "run").recipe == changed


def test_what_decides_the_result_makes_another_run(tmp_path: Path) -> None:
    start(tmp_path / "run")
    for section, values in (
        ("pretrain", {"validate_every": 7}),
        ("decoder", {"dropout": 0.0}),
        ("noise", {"ratio": 1}),
    ):
        changed = Recipe().replace(section, **values)
        assert runs.identity_digest("pretrain", changed, {}) != runs.identity_digest("pretrain", Recipe(), {})
        with pytest.raises(DamagedStore, match=rf"recipe \({section}\.{next(iter(values))}\) differ"):
            start(tmp_path / "run", changed)


def test_who_asks_for_more_steps_is_told_how_to_train_further(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.start_or_continue(folder, "finetune", Recipe(), CHARSET, 8, {"images": "i"})
    longer = Recipe().replace("finetune", steps=Recipe().finetune.steps + 1)
    with pytest.raises(DamagedStore, match=r"finetune\.steps\) differ") as error:
        runs.start_or_continue(folder, "finetune", longer, CHARSET, 8, {"images": "i"})
    assert f"--from {folder}" in error.value.advice


def test_the_newest_run_is_one_that_can_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / name for name in ("finished", "failed", "broken", "cut")]
    for folder in folders:
        start(folder)
    save_checkpoint(folders[0] / "checkpoints" / "last", {"model": {"w": torch.ones(1)}}, {"step": 1})
    (folders[2] / "run.json").write_text("[]")
    (folders[3] / "recipe.toml").unlink()
    found = runs.newest(folders, "pretrain")
    assert found is not None
    assert found.folder == folders[0]
    said = capsys.readouterr().err
    assert all(f"{tmp_path / name}" in said for name in ("failed", "broken", "cut"))
    assert runs.newest(folders[1:], "pretrain") is None


def test_freezing_every_part_is_one_line() -> None:
    frozen = {"encoder_lr_scale": 0.0, "fmu_lr_scale": 0.0, "decoder_lr_scale": 0.0}
    recipe = Recipe().replace("finetune", **frozen)
    recipe = recipe.replace("encoder", layers=1)
    recognizer = Recognizer(recipe, CHARSET, 192)
    with pytest.raises(UserError, match="all parts are frozen"):
        parameter_groups(recognizer, recipe)
    assert parameter_groups(recognizer, recipe.replace("finetune", decoder_lr_scale=1.0))


def test_a_damaged_optimizer_does_not_keep_a_model_from_being_used(tmp_path: Path) -> None:
    start(tmp_path / "run")
    best = tmp_path / "run" / "checkpoints" / "best"
    save_checkpoint(best, {"model": {"w": torch.ones(1)}, "optimizer": {"w": torch.zeros(1)}}, {"step": 1})
    (best / "optimizer.safetensors").write_bytes(b"damaged")
    assert runs.Run.load(tmp_path / "run").weights()["w"].item() == 1
    with pytest.raises(DamagedStore, match=r"optimizer\.safetensors"):
        load_state(best)
    (best / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DamagedStore, match=r"model\.safetensors"):
        runs.Run.load(tmp_path / "run").weights()


@pytest.mark.parametrize("name", ["run.json", "recipe.toml"])
def test_a_changed_letter_in_a_runs_description_is_found(tmp_path: Path, name: str) -> None:
    start(tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(DamagedStore, match="contents have changed"):
        runs.Run.load(tmp_path / "run")


def test_a_run_is_named_for_stage_data_and_day_and_found_again(tmp_path: Path) -> None:
    def named(digest: str) -> Path:
        return runs.named_folder(tmp_path, "finetune", "my crops", digest)

    day = time.strftime("%Y-%m-%d")
    first = named("a")
    assert first.name == f"finetune-my-crops-{day}-1"
    first.mkdir()
    assert named("a") == first
    runs.keep_identity(first, "a")
    assert named("a") == first
    assert named("b").name == f"finetune-my-crops-{day}-2"
    (tmp_path / f"finetune-my-crops-{day}-2").mkdir()
    (tmp_path / f"finetune-my-crops-{day}-2" / "run.json").write_text("{}")
    assert named("b").name == f"finetune-my-crops-{day}-3"
    first.rename(tmp_path / "finetune-other-name")
    assert named("a").name == "finetune-other-name"


def test_newest_names_the_newest_fine_tuned_run(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(UserError, match="no run in"):
        model_path(workspace, "newest")
    for number, (name, kind) in enumerate((("old", "finetune"), ("new", "finetune"), ("decoder", "pretrain"))):
        folder = workspace.runs / name
        runs.start_or_continue(folder, kind, Recipe(), Charset.named("36"), 8, {})  # type: ignore[arg-type]
        save_checkpoint(folder / "checkpoints" / "last", {"model": {"x": torch.zeros(1)}}, {"step": 1})
        os.utime(folder / "run.json", (number, number))
    assert model_path(workspace, "newest") == workspace.runs / "new"
    assert newest_run(workspace).folder == workspace.runs / "decoder"
    start = start_named(workspace, "newest")
    assert start is not None
    assert start.kind == "pretrain"
