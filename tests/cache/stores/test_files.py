"""Files are written where they are said to be: over no store, through no link, and nothing half written stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dptr.cache.errors import UserError
from dptr.cache.stores.files import require_replaceable, temporary_beside, write_text
from dptr.cache.stores.lock import locked
from dptr.trainer.training.step_log import append


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Return a folder with the files by which a store, a run and two models are recognised."""
    for name in (
        "store/manifest.json",
        "store/part-00000.parquet",
        "store/index-16-32.faiss",
        "store/notes.txt",
        "run/run.json",
        "run/recipe.toml",
        "run/metrics.jsonl",
        "run/report.html",
        "run/model.onnx",
        "run/checkpoints/last/model.safetensors",
        "run/predictions/ab.parquet",
        "pushed/recipe.toml",
        "pushed/model.safetensors",
        "clip/config.json",
        "clip/model.safetensors",
        "recipe.toml",
        "model.safetensors.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "store",
        "store/manifest.json",
        "store/part-00000.parquet",
        "store/part-00001.arrow",  # the store would take it for its own
        "store/index-16-32.faiss",
        "run",
        "run/run.json",
        "run/recipe.toml",
        "run/metrics.jsonl",
        "run/model.onnx",
        "run/checkpoints",
        "run/checkpoints/last",
        "run/checkpoints/last/model.safetensors",
        "run/predictions/ab.parquet",
        "run/predictions/new.parquet",
        "pushed",
        "pushed/recipe.toml",
        "pushed/model.safetensors",
        "clip",
        "clip/config.json",
    ],
)
def test_what_belongs_to_a_store_a_run_or_a_model_is_not_replaced(workspace: Path, name: str) -> None:
    with pytest.raises(UserError, match="Name another"):
        require_replaceable(workspace / name)


@pytest.mark.parametrize(
    "name",
    [
        "store/notes.txt",
        "store/answer.csv",
        "run/report.html",
        "run/parseq.safetensors",
        "run/crops",
        "recipe.toml",
        "model.safetensors.txt",
        "new/folder/file.txt",
        "",
    ],
)
def test_other_files_are(workspace: Path, name: str) -> None:
    require_replaceable(workspace / name)


def test_an_exported_model_replaces_an_exported_model_alone(workspace: Path) -> None:
    require_replaceable(workspace / "run/model.onnx", as_model=True)
    for name in ("run/checkpoints/last/model.safetensors", "pushed/model.safetensors", "store/manifest.json"):
        with pytest.raises(UserError):
            require_replaceable(workspace / name, as_model=True)


def test_links_are_followed(workspace: Path) -> None:
    (workspace / "link.txt").symlink_to(workspace / "run/run.json")
    (workspace / "folder").symlink_to(workspace / "store")
    for name in ("link.txt", "folder", "folder/manifest.json"):
        with pytest.raises(UserError, match="Name another"):
            require_replaceable(workspace / name)


def test_a_lock_is_not_written_through_a_symlink(tmp_path: Path) -> None:
    store, victim = tmp_path / "store", tmp_path / "victim"
    store.mkdir()
    victim.write_text("precious")
    (store / ".lock.owner.json").symlink_to(victim)
    with locked(store):
        assert json.loads((store / ".lock.owner.json").read_text())["pid"] == os.getpid()
    assert victim.read_text() == "precious"
    (store / ".lock").symlink_to(victim)
    with pytest.raises(UserError, match="cannot write"), locked(store):
        pass
    assert victim.read_text() == "precious"


def test_no_file_of_a_store_is_written_through_a_symlink(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    temporary_beside(tmp_path / "manifest.json").symlink_to(victim)
    (tmp_path / "manifest.json").symlink_to(victim)
    write_text(tmp_path / "manifest.json", "new")
    assert not (tmp_path / "manifest.json").is_symlink()
    (tmp_path / "metrics.jsonl").symlink_to(victim)
    with pytest.raises(UserError, match="could not write"):
        append(tmp_path / "metrics.jsonl", {"step": 1})
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["checkpoints", "predictions"])
def test_nothing_is_written_through_a_folder_of_a_run_that_is_a_symlink(tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link to another folder"):
        write_text(tmp_path / name / "a", "x")
    with pytest.raises(UserError, match="is a link to another folder"), locked(tmp_path):
        pass
    assert list(elsewhere.iterdir()) == []


def test_a_fifo_beside_a_lock_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock.owner.json")
    with locked(tmp_path):
        pass
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="could not write"):
        append(tmp_path / "metrics.jsonl", {"step": 1})


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from dptr.cache.stores.files import atomic_path, scratch_folder
scratch = scratch_folder()
with atomic_path(Path(sys.argv[1]) / "answer.parquet") as path:
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    places = {**os.environ, "TMPDIR": str(tmp_path)}
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-c", code, str(out)], env=places, check=False)
    assert len(list(tmp_path.glob("dptr-*"))) == 1
    assert len(list(out.iterdir())) == 1
    another_machine = out / ".other.00000000-1.writing"
    another_machine.touch()
    code = code.replace("    os.kill", "if False: os.kill")
    subprocess.run([sys.executable, "-c", code, str(out)], env=places, check=True)
    assert sorted(path.name for path in out.iterdir()) == [another_machine.name, "answer.parquet"]
    assert list(tmp_path.glob("dptr-*")) == []
