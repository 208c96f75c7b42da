"""embed-crops and what follows from it, as a user would type it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dptr.cli import run_command

WORDS = ["red", "oak", "tin", "sky", "map", "owl", "ice", "bun", "fog", "hut"]
SMALL = [
    *("--set", "decoder.dim=32", "--set", "decoder.heads=2", "--set", "decoder.feed_forward=32"),
    *("--set", "fmu.queries=8", "--set", "fmu.heads=2", "--set", "finetune.batch_size=4"),
]


@pytest.fixture
def crops(tmp_path: Path, draw_crops: Any) -> Path:
    folder = tmp_path / "crops"
    folder.mkdir()
    draw_crops(folder, WORDS)
    return folder


def test_crops_are_embedded_once_and_a_recogniser_comes_of_them(
    crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def dptr(*arguments: object) -> dict[str, Any]:
        code = run_command([*map(str, arguments), "--workspace", str(tmp_path / "ws"), "--json", "--quiet"])
        said = capsys.readouterr()
        assert code == 0, said.err
        result: dict[str, Any] = json.loads(said.out.splitlines()[-1])
        return result

    embedded = dptr("embed-crops", crops, "--copies", "2")
    assert (embedded["rows"], embedded["crops"], embedded["computed"], embedded["quarantined"]) == (20, 10, 20, 0)
    assert dptr("embed-crops", crops, "--copies", "2")["computed"] == 0
    store = tmp_path / "ws" / "image_features"
    assert dptr("verify")["out"] == [str(store)]
    assert dptr("sql", "select count(*) from image_features where view = 0")["result"] == [[10]]
    asked = ["finetune", "--data", store, "--from", "none", "--steps", "2", *SMALL]
    run = dptr(*asked)
    assert (run["steps"], run["computed"]) == (2, 8)
    assert dptr(*asked)["computed"] == 0
    assert dptr("evaluate", run["out"], "--data", crops)["rows"] == 10
    assert dptr("read", run["out"], crops / "0.png")["rows"] == 1
    of_pooled_vectors = dptr(
        *asked, "--set", "memory.kind=pooled", "--set", "decoder.memory_dim=128", "--out", tmp_path / "pooled"
    )
    assert (of_pooled_vectors["steps"], of_pooled_vectors["computed"]) == (2, 8)
    assert dptr("evaluate", tmp_path / "pooled", "--data", crops)["rows"] == 10
    model = dptr("export", run["out"], "--to", "safetensors")["out"]
    assert dptr("read", model, crops / "0.png")["rows"] == 1
    assert run_command([*map(str, asked), "--data", str(crops), "--workspace", str(tmp_path / "ws"), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "cannot be mixed" in line
