"""finetune --units: which clusters a recogniser reads, the labels of its crops say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dptr.cache.text.charset import Charset
from dptr.cli import run_command
from dptr.trainer.training.runs import Run

WORDS = ["क्षत्रिय", "नमस्ते", "की", "काम", "नाम", "Exit", "मन", "कन", "यम", "नय"]
SMALL = [
    *("--set", "decoder.dim=32", "--set", "decoder.heads=2", "--set", "decoder.feed_forward=32"),
    *("--set", "encoder.dim=32", "--set", "encoder.heads=2", "--set", "encoder.layers=1"),
    *("--set", "fmu.queries=8", "--set", "fmu.heads=2", "--set", "finetune.batch_size=4"),
    *("--from", "none", "--steps", "1"),
]


@pytest.fixture
def asked(tmp_path: Path, draw_crops: Any) -> list[str]:
    crops = draw_crops(tmp_path / "crops", WORDS)
    return ["finetune", "--data", str(crops), "--workspace", str(tmp_path / "ws"), "-o", str(tmp_path / "run"), *SMALL]


def test_clusters_are_those_of_the_labels_that_the_charset_can_write(asked: list[str], tmp_path: Path) -> None:
    assert run_command([*asked, "--charset", "hi", "--units", "grapheme"]) == 0
    charset = Run.load(tmp_path / "run").charset
    assert charset.units == "grapheme"
    assert {"क्ष", "त्रि", "स्ते", "की", "का", "ना", "E", "ख"} <= set(charset.characters)
    assert not {"खा", "\u093e"} & set(charset.characters)
    assert run_command([*asked, "--charset", "hi", "--units", "grapheme"]) == 0, "the same command goes on"


def test_a_name_alone_means_code_points(asked: list[str], tmp_path: Path) -> None:
    assert run_command([*asked, "--charset", "hi"]) == 0
    assert Run.load(tmp_path / "run").charset == Charset.named("hi")


def test_clusters_of_a_file_are_not_taken_apart(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "units.txt").write_text("# units: grapheme\nकी\n", encoding="utf-8")
    assert run_command([*asked, "--charset", str(tmp_path / "units.txt"), "--units", "codepoint"]) == 2
    assert "Leave --units out" in capsys.readouterr().err
