"""Checkpoints are whole or not there, and damage to one is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dptr.cache.errors import DamagedStore
from dptr.trainer.training import checkpoint
from dptr.trainer.training.checkpoint import find_checkpoint, load_state, save_checkpoint


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
