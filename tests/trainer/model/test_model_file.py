"""A model file whose description is wrong, though its checksum is right, is rejected in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dptr.cache.errors import DamagedStore
from dptr.cache.stores import checksummed as checksummed
from dptr.trainer.model.model_file import BUNDLED, ModelFile, load_model


def described(path: Path, **changes: str) -> Path:
    """A checksummed file with the bundled recogniser's description, changed, and with one tensor."""
    with safe_open(BUNDLED, "pt") as file:
        save_file({"w": torch.ones(4, 5)}, path, file.metadata() | changes)
    checksummed.checksum(path)
    return path


@pytest.mark.parametrize("width", ["1=2", "", "0", "-1", "1e3", "99999999999"])
def test_a_width_that_cannot_be_is_damage(tmp_path: Path, width: str) -> None:
    with pytest.raises(DamagedStore, match="is damaged"):
        ModelFile.open(described(tmp_path / "model.safetensors", dptr_memory_dim=width))


def test_weights_of_another_model_are_damage(tmp_path: Path) -> None:
    with pytest.raises(DamagedStore, match="not those of a model of its recipe"):
        load_model(described(tmp_path / "model.safetensors"))
