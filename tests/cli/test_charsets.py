"""Charsets as commands take them: characters that normalisation writes otherwise, clusters, and image features."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dptr.cache.stores.image_features import WordCropStore
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.text.charset import Charset
from dptr.cli import run_command
from dptr.trainer.training.runs import Run

THAI = ["น้ำ", "กำ", "มา", "นาน", "มก", "กน", "ทำ", "คำ", "มน", "นก"]
HINDI = ["क्षत्रिय", "नमस्ते", "की", "काम", "नाम", "Exit", "मन", "कन", "यम", "नय"]
#: Sara am, and neither of the two characters that NFKC makes of it.
FILE = "กนมทค\u0e49\u0e33"
AS_LABELS = FILE + "\u0e4d\u0e32"
Dptr = Callable[..., dict[str, Any]]


@pytest.fixture
def charset(tmp_path: Path) -> Path:
    path = tmp_path / "thai.txt"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.fixture
def train(dptr: Dptr, small: Callable[..., list[str]], tmp_path: Path) -> Dptr:
    """Train a step from scratch on a folder of crops, into ``run``."""
    return lambda crops, *more: dptr(
        "finetune", crops, "--from", "none", "--steps", 1, "-o", tmp_path / "run", *small(), *more
    )


def test_embed_text_rejects_no_label_for_how_its_charset_is_written(dptr: Dptr, charset: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\n".join(THAI), encoding="utf-8")
    made = dptr("embed-text", tmp_path / "words.txt", "--charset", charset)
    assert (made["rows"], made["quarantined"]) == (len(THAI), 0)
    assert "added to the charset" in made["said"]
    assert PromptStore(tmp_path / "ws" / "prompts").charset == Charset(AS_LABELS)
    assert dptr("embed-text", tmp_path / "words.txt", "--charset", charset)["computed"] == 0


def test_finetune_trains_on_every_crop_whose_label_its_charset_spells(
    train: Dptr, charset: Path, draw_crops: Any, tmp_path: Path
) -> None:
    crops = draw_crops(tmp_path / "crops", THAI)
    assert train(crops, "--charset", charset)["quarantined"] == 0
    assert Run.load(tmp_path / "run").charset == Charset(AS_LABELS)
    assert train(crops, "--charset", charset)["computed"] == 0


def test_clusters_are_those_of_the_labels_that_the_charset_can_write(
    train: Dptr, draw_crops: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crops = draw_crops(tmp_path / "crops", HINDI)
    train(crops, "--charset", "hi", "--units", "grapheme")
    charset = Run.load(tmp_path / "run").charset
    assert charset.units == "grapheme"
    assert {"क्ष", "त्रि", "स्ते", "की", "का", "ना", "E", "ख"} <= set(charset.characters)
    assert not {"खा", "\u093e"} & set(charset.characters)
    assert train(crops, "--charset", "hi", "--units", "grapheme")["computed"] == 0, "the same command resumes"
    train(crops, "--charset", "hi", "-o", tmp_path / "points")
    assert Run.load(tmp_path / "points").charset == Charset.named("hi"), "a name alone means code points"
    (tmp_path / "units.txt").write_text("# units: grapheme\nकी\n", encoding="utf-8")
    asked = ["finetune", str(crops), "--charset", str(tmp_path / "units.txt"), "--units", "codepoint"]
    assert run_command([*asked, "--from", "none"]) == 2
    assert "Leave --units out" in capsys.readouterr().err


def test_crops_are_embedded_once_and_recognisers_come_of_them(
    dptr: Dptr,
    charset: Path,
    small: Callable[..., list[str]],
    draw_crops: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    crops, store = draw_crops(tmp_path / "crops", THAI), tmp_path / "ws" / "image_features"
    embedded = dptr("embed-crops", crops, "--charset", charset, "--copies", 2)
    assert (embedded["rows"], embedded["crops"], embedded["computed"], embedded["quarantined"]) == (20, 10, 20, 0)
    assert WordCropStore(store).charset == Charset(AS_LABELS)
    assert dptr("embed-crops", crops, "--charset", charset, "--copies", 2)["computed"] == 0
    assert dptr("verify")["out"] == [str(store)]
    assert dptr("sql", "select count(*) from image_features where view = 0")["result"] == [[10]]
    asked = ["finetune", store, "--from", "none", "--charset", charset, "--steps", 2]
    asked += small("decoder", "fmu", "finetune")
    run = dptr(*asked)
    assert (run["steps"], run["computed"]) == (2, 8)
    assert dptr(*asked)["computed"] == 0
    pooled = dptr(*asked, "--set=memory.kind=pooled", "--set=decoder.memory_dim=128", "--out", tmp_path / "pooled")
    assert (pooled["steps"], pooled["computed"]) == (2, 8)
    for made in (run["out"], tmp_path / "pooled"):
        assert dptr("evaluate", made, crops)["rows"] == 10
    model = dptr("export", run["out"], "--to", "safetensors")["out"]
    for made in (run["out"], model):
        assert dptr("read", made, crops / "0.png")["rows"] == 1
    assert run_command([*map(str, asked), str(crops), "--workspace", str(tmp_path / "ws"), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "cannot be mixed" in line
