"""Runs: which settings make another one, and which of several is the newest that can be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.text.charset import Charset
from dptr.trainer.finetune import parameter_groups
from dptr.trainer.model.recognizer import Recognizer
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
    assert runs.default_name("pretrain", changed, {}) == runs.default_name("pretrain", Recipe(), {})
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
        assert runs.default_name("pretrain", changed, {}) != runs.default_name("pretrain", Recipe(), {})
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
