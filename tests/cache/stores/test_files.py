"""Outputs replace no file of a store, a run or a model, and nothing half written stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dptr.cache.errors import UserError
from dptr.cache.stores.files import require_replaceable, write_json
from dptr.cache.stores.lock import locked


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Return a folder with the files by which a store, a run and two models are recognised."""
    for name in (
        "store/manifest.json",
        "store/part-00000.parquet",
        "run/run.json",
        "run/recipe.toml",
        "run/report.html",
        "run/model.onnx",
        "run/checkpoints/last/state.json",
        "run/checkpoints/last/model.safetensors",
        "run/predictions/ab.parquet",
        "pushed/recipe.toml",
        "pushed/model.safetensors",
        "clip/config.json",
        "clip/model.safetensors",
        "recipe.toml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link.txt").symlink_to(tmp_path / "run/run.json")
    (tmp_path / "linked").symlink_to(tmp_path / "store")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "store",
        "store/manifest.json",
        "store/part-00000.parquet",
        "run",
        "run/recipe.toml",
        "run/model.onnx",
        "run/checkpoints/last",
        "run/checkpoints/last/model.safetensors",
        "run/predictions/ab.parquet",
        "pushed/model.safetensors",
        "clip/config.json",
        "link.txt",
        "linked",
        "linked/manifest.json",
    ],
)
def test_what_belongs_to_a_store_a_run_or_a_model_is_not_replaced(workspace: Path, name: str) -> None:
    with pytest.raises(UserError, match="Name another"):
        require_replaceable(workspace / name)


@pytest.mark.parametrize(
    "name", ["store/answer.csv", "run/report.html", "run/parseq.safetensors", "recipe.toml", "new/folder/file.txt", ""]
)
def test_other_files_are(workspace: Path, name: str) -> None:
    require_replaceable(workspace / name)


def test_an_exported_model_replaces_an_exported_model_alone(workspace: Path) -> None:
    require_replaceable(workspace / "run/model.onnx", as_model=True)
    for name in ("run/checkpoints/last/model.safetensors", "pushed/model.safetensors", "store/manifest.json"):
        with pytest.raises(UserError):
            require_replaceable(workspace / name, as_model=True)


def test_a_symlink_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "manifest.json").symlink_to(victim)
    write_json(tmp_path / "manifest.json", {})
    assert not (tmp_path / "manifest.json").is_symlink()
    assert victim.read_text() == "precious"


def test_what_a_killed_process_left_is_removed_under_the_lock(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from dptr.cache.stores.files import atomic_path
with atomic_path(Path(sys.argv[1]) / "answer.parquet") as path:
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(os.listdir(tmp_path)) == 1
    with locked(tmp_path):
        pass
    assert os.listdir(tmp_path) == []
