"""`dptr doctor` and `dptr init`: what they find is there, and what they propose can be run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from dptr.cli import app, run_command
from dptr.pipeline import first_look


def crops(folder: Path, labels: list[str], size: tuple[int, int] = (64, 16)) -> Path:
    folder.mkdir()
    for number in range(len(labels)):
        Image.new("RGB", size).save(folder / f"{number}.png")
    lines = [f"{number}.png\t{label}\n" for number, label in enumerate(labels)]
    (folder / "labels.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


def test_doctor_finds_what_is_there_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor", "--json", "--workspace", str(tmp_path / "none" / "yet")]) == 0
    found = json.loads(capsys.readouterr().out)
    names = {(finding["group"], finding["name"]) for finding in found["findings"]}
    assert {("version", "torch"), ("device", "cpu"), ("disk", str(tmp_path))} <= names
    assert {("font", "Latin"), ("font", "Han"), ("optional", "onnxruntime")} <= names
    assert found["missing"] == [
        f"{finding['group']} {finding['name']}: {finding['found']}"
        for finding in found["findings"]
        if finding["missing"]
    ]
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_that_others_keep_the_machine_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    for load, told in ((0.2, False), (64.0, True)):
        monkeypatch.setattr(first_look.psutil, "getloadavg", lambda load=load: (load, load, load))
        monkeypatch.setattr(first_look, "usable_processors", lambda: 4)
        (found,) = (finding.found for finding in first_look._devices() if finding.name == "load")
        assert ("OMP_NUM_THREADS=1" in found) is told


def test_doctor_says_which_command_a_missing_library_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_look.util, "find_spec", lambda name: None)
    missing = {finding.name: finding.found for finding in first_look._libraries() if finding.missing}
    assert missing["onnxruntime"] == "missing, for dptr export --to onnx: pip install 'dptr[export]'"


def pictures(folder: Path, size: tuple[int, int]) -> Path:
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def said_of(capsys: pytest.CaptureFixture[str], *paths: Path) -> dict[str, Any]:
    assert run_command(["init", *map(str, paths), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_data_are_told_apart_and_one_command_takes_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = tmp_path / "my words.txt"
    words.write_text("street\nLane\n", encoding="utf-8")
    labelled = crops(tmp_path / "crops", ["Road", "x" * 60, *["square"] * 20], (200, 20))
    photos, more = pictures(tmp_path / "photos", (640, 480)), pictures(tmp_path / "more", (90, 30))
    found = said_of(capsys, words, labelled, photos, more)
    assert shlex.split(found["command_to_run"]) == [
        *("dptr", "finetune", str(labelled), "--from", "bundled", "--text", str(words)),
        *("--photos", str(photos), "--unlabelled", str(more), "-o", "dptr_data/runs/adapted"),
    ]
    assert found["remarks"] == []
    finetune = get_command(app).commands["finetune"]  # type: ignore[attr-defined]
    parsed = finetune.make_context("finetune", shlex.split(found["command_to_run"])[2:])
    assert (parsed.params["text"], parsed.params["unlabelled"]) == ([words], [more])


@pytest.mark.parametrize(
    ("count", "size", "obstacle"),
    [(0, (60, 20), "no labelled crops"), (5, (60, 20), "5 labelled crops are too few"), (30, (800, 900), "as pages")],
)
def test_where_training_cannot_help_the_reason_is_given_and_no_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, size: tuple[int, int], obstacle: str
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("street\n", encoding="utf-8")
    found = said_of(capsys, words, *([crops(tmp_path / "crops", ["Road"] * count, size)] if count else []))
    assert found["command_to_run"] is None
    assert obstacle in found["remarks"][0]


def test_characters_that_no_recogniser_has_learnt_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = said_of(capsys, crops(tmp_path / "crops", ["ქუჩა", "ქალაქი"] * 15))
    assert "6 of 6 characters are new to the recogniser" in found["remarks"][0]
    assert "no text" in found["remarks"][1]
    greek = said_of(capsys, crops(tmp_path / "greek", ["οδός", "πόλη"] * 15))
    assert "--from scripts" in greek["command_to_run"]
    assert not any("new to the recogniser" in remark for remark in greek["remarks"])


def test_random_bytes_are_no_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.txt").write_bytes(np.random.default_rng(0).bytes(5000))
    assert run_command(["init", str(tmp_path / "words.txt")]) == 2
    assert "neither text nor labelled crops" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["images gone", "pictures torn", "lmdb cut"])
def test_labelled_crops_that_are_damaged_are_named_and_not_taken_for_words_or_photos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    folder = crops(tmp_path / "crops", ["Road", "square"])
    if what == "lmdb cut":
        folder = tmp_path / "crops.lmdb"
        assert run_command(["pack-crops", str(tmp_path / "crops"), "-o", str(folder), "--quiet"]) == 0
        (folder / "data.mdb").write_bytes((folder / "data.mdb").read_bytes()[:5000])
    for picture in (tmp_path / "crops").glob("*.png"):
        if what == "images gone":
            picture.rename(picture.with_name(f"other-{picture.name}"))
        if what == "pictures torn":
            picture.write_bytes(picture.read_bytes()[:40])
    assert run_command(["init", str(folder)]) == 2
    said = capsys.readouterr().err
    assert {"images gone": "no existing image", "pictures torn": "none of 2 crops", "lmdb cut": "as LMDB"}[what] in said


def test_what_is_nothing_of_these_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert run_command(["init", str(tmp_path / "empty")]) == 2
    assert "neither labelled crops nor images" in capsys.readouterr().err
    assert run_command(["init", str(tmp_path / "none")]) == 2
