"""No output replaces a file of a store, a run or a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from dptr.cache.errors import UserError
from dptr.cache.stores.files import require_replaceable


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
