"""Charset files with characters that normalisation writes otherwise, in every command that takes one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dptr.cache.stores.image_features import WordCropStore
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.text.charset import Charset
from dptr.cli import run_command
from dptr.trainer.training.runs import Run

WORDS = ["น้ำ", "กำ", "มา", "นาน", "มก", "กน", "ทำ", "คำ", "มน", "นก"]
#: Sara am, and neither of the two characters that NFKC makes of it.
FILE = "กนมทค\u0e49\u0e33"
AS_LABELS = FILE + "\u0e4d\u0e32"
SMALL = [
    *("--set", "decoder.dim=32", "--set", "decoder.heads=2", "--set", "decoder.feed_forward=32"),
    *("--set", "encoder.dim=32", "--set", "encoder.heads=2", "--set", "encoder.layers=1"),
    *("--set", "fmu.queries=8", "--set", "fmu.heads=2", "--set", "finetune.batch_size=4"),
]
Dptr = Callable[..., dict[str, Any]]


@pytest.fixture
def charset(tmp_path: Path) -> Path:
    path = tmp_path / "thai.txt"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.fixture
def crops(tmp_path: Path, draw_crops: Any) -> Path:
    folder: Path = draw_crops(tmp_path / "crops", WORDS)
    return folder


@pytest.fixture
def dptr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Dptr:
    def run(*arguments: object) -> dict[str, Any]:
        code = run_command([*map(str, arguments), "--workspace", str(tmp_path / "ws"), "--json"])
        said = capsys.readouterr()
        assert code == 0, said.err
        result: dict[str, Any] = json.loads(said.out.splitlines()[-1])
        return result | {"said": said.err}

    return run


def test_embed_text_rejects_no_label_for_how_its_charset_is_written(dptr: Dptr, charset: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\n".join(WORDS), encoding="utf-8")
    made = dptr("embed-text", tmp_path / "words.txt", "--charset", charset)
    assert (made["rows"], made["quarantined"]) == (len(WORDS), 0)
    assert "added to the charset" in made["said"]
    assert PromptStore(tmp_path / "ws" / "prompts").charset == Charset(AS_LABELS)
    assert dptr("embed-text", tmp_path / "words.txt", "--charset", charset)["computed"] == 0


def test_finetune_trains_on_every_crop_whose_label_its_charset_spells(dptr: Dptr, charset: Path, crops: Path) -> None:
    asked = ("finetune", "--data", crops, "--charset", charset, "--from", "none", "--steps", 1, *SMALL)
    run = dptr(*asked)
    assert run["quarantined"] == 0
    assert Run.load(Path(run["out"])).charset == Charset(AS_LABELS)
    assert dptr(*asked)["computed"] == 0


def test_embed_crops_and_what_is_trained_from_its_store(dptr: Dptr, charset: Path, crops: Path, tmp_path: Path) -> None:
    made = dptr("embed-crops", crops, "--charset", charset, "--copies", 1)
    assert (made["rows"], made["quarantined"]) == (len(WORDS), 0)
    store = tmp_path / "ws" / "image_features"
    assert WordCropStore(store).charset == Charset(AS_LABELS)
    assert dptr("embed-crops", crops, "--charset", charset, "--copies", 1)["computed"] == 0
