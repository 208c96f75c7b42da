"""Checkpoints are whole or not there, what is restored goes on to the same bits, and logs are cut to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dptr.cache.errors import DamagedStore
from dptr.trainer.training import checkpoint, step_log
from dptr.trainer.training.checkpoint import MovingAverage, TrainState, find_checkpoint, load_state, save_checkpoint


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"files": 3}'])
def test_a_damaged_description_is_damage(tmp_path: Path, content: str) -> None:
    save_checkpoint(tmp_path / "last", {"model": {"w": torch.ones(3)}}, {"step": 1})
    (tmp_path / "last" / "state.json").write_text(content)
    with pytest.raises(DamagedStore, match=r"state\.json"):
        load_state(tmp_path / "last")


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "last"
    save_checkpoint(folder, {"model": {"w": torch.ones(3)}}, {"step": 1})
    renames: list[Path] = []
    rename = checkpoint.os.rename

    def dies_at_second(source: Path, target: Path) -> None:
        renames.append(target)
        if len(renames) == 2:
            raise SystemExit
        rename(source, target)

    monkeypatch.setattr(checkpoint.os, "rename", dies_at_second)
    with pytest.raises(SystemExit):
        save_checkpoint(folder, {"model": {"w": torch.zeros(3)}}, {"step": 2})
    found = find_checkpoint(folder)
    assert found is not None
    assert load_state(found)["step"] in (1, 2)


def test_a_changed_checkpoint_file_is_damage(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last", {"model": {"w": torch.ones(3)}}, {"step": 1})
    path = tmp_path / "last" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedStore, match=r"model\.safetensors"):
        load_state(tmp_path / "last")


def fresh() -> TrainState:
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainState(model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True), None)


def take_step(state: TrainState) -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(state.step))
    state.model(images).square().mean().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1


def test_weights_in_another_memory_format_go_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = fresh()
    take_step(whole)
    save_checkpoint(tmp_path / "last", whole.tensors(), whole.numbers())
    take_step(whole)
    resumed = fresh()
    resumed.restore(tmp_path / "last")
    take_step(resumed)
    assert torch.equal(resumed.model.weight, whole.model.weight)  # type: ignore[arg-type]


def test_an_early_average_forgets_the_start() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(100.0)
    average = MovingAverage(model, 0.999)
    average.update(model)
    model.weight.data.fill_(1.0)
    for _ in range(50):
        average.update(model)
    assert abs(float(average.module.weight.detach()) - 1.0) < 0.01


def test_running_statistics_are_averaged_like_weights() -> None:
    model = nn.BatchNorm1d(1)
    average = MovingAverage(model, 0.9)
    average.update(model)
    model.running_mean.fill_(11.0)
    average.update(model)
    torch.testing.assert_close(average.module.running_mean, torch.tensor([9.0]))


def test_damaged_lines_of_a_log_take_no_others_with_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 2}\n{"st\xff\n[]\n{"step": 4}\n{"step": 6}\n{"ste')
    step_log.keep_up_to(path, 5)
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n'
