"""`dptr doctor` and `dptr init`: what they find is there, and what they propose can be run."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dptr.cache.charset import Charset
from dptr.cli import run_command
from dptr.pipeline.starting import doctor
from dptr.pipeline.starting.look import look_at
from dptr.pipeline.starting.plan import choose_charset, plan
from dptr.trainer.recipe import load_recipe


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
    assert {("version", "torch"), ("device", "cpu"), ("precision", "fp32 on cpu"), ("disk", "writing")} <= names
    assert {("font", "Latin"), ("font", "Han"), ("optional", "onnxruntime")} <= names
    assert found["missing"] == [
        f"{finding['group']} {finding['name']}: {finding['found']}"
        for finding in found["findings"]
        if finding["missing"]
    ]
    assert list(tmp_path.iterdir()) == []


def test_doctor_says_that_others_keep_the_machine_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    for load, told in ((0.2, False), (64.0, True)):
        monkeypatch.setattr(doctor.psutil, "getloadavg", lambda load=load: (load, load, load))
        monkeypatch.setattr(doctor, "usable_processors", lambda: 4)
        (found,) = (finding.found for finding in doctor._devices() if finding.name == "load")
        assert ("OMP_NUM_THREADS=1" in found) is told


def test_doctor_says_which_command_a_missing_library_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: None)
    missing = {finding.name: finding.found for finding in doctor._libraries() if finding.missing}
    assert missing["onnxruntime"] == "missing, for dptr export --to onnx: pip install 'dptr[export]'"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["street", "42"], "36"),
        (["Street", "42"], "62"),
        (["Street", "can't"], "94"),
        (["οδός", "πόλη"], "ήδηλοπςό"),
        (["a"] * 100_000 + ["é"], "36"),
    ],
)
def test_the_charset_is_the_smallest_that_spells_the_words(words: list[str], expected: str) -> None:
    proposed = choose_charset(Counter("".join(words)))
    assert Charset.named(proposed).characters if expected.isdigit() else set(proposed) == set("".join(words))
    assert not expected.isdigit() or proposed == expected


def test_data_are_told_apart_and_the_recipe_fits_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.txt").write_text("street\nLane\n" + "x" * 40 + "\n", encoding="utf-8")
    wide = crops(tmp_path / "crops", ["Road", "square"], (200, 20))
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "photos" / "a.png")
    out = tmp_path / "my recipe.toml"
    given = [str(tmp_path / "words.txt"), str(wide), str(tmp_path / "photos")]
    assert run_command(["init", *given, "-o", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    recipe = load_recipe(str(out))
    assert (recipe.decoder.max_label_length, recipe.encoder.image_width) == (40, 256)
    assert "# 99.9 % of your labels" in out.read_text()
    assert (said["charset"], said["base"]) == ("62", "tiny")
    assert [shlex.split(line)[1] for line in said["short_way"]] == ["render-words", "finetune", "read"]
    assert str(wide) in shlex.split(said["short_way"][1])
    parts = [shlex.split(line) for line in said["commands"]]
    embed = ["dptr", "embed-text", str(tmp_path / "words.txt"), "--charset", "62", "--max-label-length", "40"]
    assert parts[1] == embed
    assert ["dptr", "build-orp-bank", str(tmp_path / "photos")] in parts
    assert any(line[:4] == ["dptr", "finetune", "--recipe", str(out)] and str(wide) in line for line in parts)
    assert run_command(["init", *given, "-o", str(out)]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "script", "start", "clip"),
    [
        ("οδός\nπόλη\n", "Greek", "--from scripts", "--clip scripts"),
        ("شارع\nمدينة\n", "Arabic", "--from bundled", "--clip scripts"),
        ("ქუჩა\nქალაქი\n", "Georgian", "--from bundled", "--clip my_clip/clip"),
    ],
)
def test_another_script_gets_its_charset_and_what_knows_it(
    tmp_path: Path, words: str, script: str, start: str, clip: str
) -> None:
    (tmp_path / "words.txt").write_text(words, encoding="utf-8")
    proposed = plan(look_at([tmp_path / "words.txt"]), tmp_path / "r.toml", tmp_path / "charset.txt", on_gpu=False)
    assert proposed.own_charset
    assert f"{script} 100%" in proposed.found[0]
    assert any(start in line for line in proposed.short_way)
    assert all(
        clip in line for line in proposed.commands if line.startswith(("dptr embed-text", "dptr build-orp-bank"))
    )
    is_trained = any("train_clip/train.py" in line for line in proposed.commands)
    assert is_trained == (clip != "--clip scripts")


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
    assert run_command(["init", str(folder), "-o", str(tmp_path / "r.toml")]) == 2
    said = capsys.readouterr().err
    assert {"images gone": "names no image", "pictures torn": "none of 2 crops", "lmdb cut": "as LMDB"}[what] in said
    assert not (tmp_path / "r.toml").exists()


def test_what_is_nothing_of_these_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert run_command(["init", str(tmp_path / "empty"), "-o", str(tmp_path / "r.toml")]) == 2
    assert "neither labelled crops nor photos" in capsys.readouterr().err
    assert run_command(["init", str(tmp_path / "none"), "-o", str(tmp_path / "r.toml")]) == 2
    assert not (tmp_path / "r.toml").exists()
