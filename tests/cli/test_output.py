"""What programs and terminals get: JSON that is JSON, UTF-8 in every locale, one line for what is rejected."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dptr.cache.command_line import Report, print_report
from dptr.cache.stores import checksummed
from dptr.cache.workspace import Workspace
from dptr.cli import run_command


def test_json_has_null_where_a_figure_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    row = ({"c": -math.inf}, "")
    print_report("x", Report({"metrics": {"loss": math.nan, "best": [math.inf, 1.5]}}, rows=[row]), True)

    def reject(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    line, last = (json.loads(text, parse_constant=reject) for text in capsys.readouterr().out.splitlines())
    assert line == {"c": None}
    assert last == {"command": "x", "metrics": {"loss": None, "best": [None, 1.5]}}


@pytest.mark.parametrize(
    "locale",
    [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}],
)
def test_output_is_utf8_whatever_the_locale_says(tmp_path: Path, locale: dict[str, str]) -> None:
    run = tmp_path / "runs" / "x"
    run.mkdir(parents=True)
    checksummed.write_json(run / "run.json", {"kind": "pretrain", "charset": "é中"})
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))
    }
    command = [sys.executable, "-m", "dptr", "sql", "select charset from runs", "--workspace", str(tmp_path)]
    done = subprocess.run(command, env={**environment, **locale}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("utf-8").splitlines()[-1] == "é中"


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (["build-orp-bank", "{photos}", "-o", "{full}"], errno.ENOSPC),
        (["render-words", "{words}", "-o", "{full}", "--count", "1"], errno.ENOSPC),
        (["pack-crops", "{crops}", "-o", "{full}/crops.parquet"], errno.EROFS),
        (["embed-text", "{words}", "-o", "{full}"], errno.EACCES),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_every_command_says_so_when_the_disk_rejects_what_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str], number: int
) -> None:
    places = {name: tmp_path / name for name in ("photos", "words", "crops", "full")}
    places["words"].write_text("some\nwords\n")
    for name in ("photos", "crops"):
        places[name].mkdir()
        Image.effect_mandelbrot((120, 90), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(places[name] / "0.png")
    (places["crops"] / "labels.tsv").write_text("0.png\tword\n")
    make = Path.mkdir

    def reject(path: Path, *arguments: Any, **named: Any) -> None:
        if places["full"] in (path, *path.parents):
            raise OSError(number, os.strerror(number), str(path))
        make(path, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", reject)
    code = run_command([*(word.format(**places) for word in command), "--quiet"])
    (said,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert str(places["full"]) in said
    assert f"{os.strerror(number)}. " in said


def test_an_lmdb_that_the_disk_does_not_hold_is_one_line_and_leaves_nothing(
    tmp_path: Path, draw_crops: Callable[[Path, Sequence[str]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    crops = draw_crops(tmp_path / "crops", [f"word{number}" for number in range(300)])
    command = ["pack-crops", str(crops), "-o", str(tmp_path / "out" / "crops.lmdb"), "--quiet"]
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    # LMDB itself calls this an input/output error.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))
    try:
        code = run_command(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    (said,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert said.startswith(f"error: {tmp_path / 'out' / 'crops.lmdb'} cannot be written: ")
    assert not [*(tmp_path / "out").iterdir()]
    assert run_command(command) == 0


def test_an_output_that_is_taken_by_a_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.txt").write_text("some\nwords\n")
    for out in (tmp_path / "words.txt", tmp_path / "words.txt" / "store"):
        code = run_command(["embed-text", str(tmp_path / "words.txt"), "-o", str(out), "--quiet"])
        said = capsys.readouterr().err.splitlines()
        assert (code, len(said)) == (2, 1), said
        assert "words.txt" in said[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed-text", "x.txt", "--shard-rows", "0"],
        ["embed-text", "x.txt", "--shard-rows", "-1"],
        ["embed-text", "x.txt", "--unit", "sentence"],
        ["embed-text", "x.txt", "--dtype", "float8"],
        ["build-orp-bank", "x", "--workers", "0"],
        ["build-orp-bank", "x", "--workers", "-3"],
        ["build-orp-bank", "x", "--seed", "-1"],
        ["build-orp-bank", "x", "--seed", str(2**64)],
        ["build-orp-bank", "x", "--crops-per-image", "1000000"],
        ["render-words", "x.txt", "-o", "y", "--count", "-5"],
        ["render-words", "x.txt", "-o", "y", "--workers", "0"],
        ["render-words", "x.txt", "-o", "y", "--seed", str(2**63)],
        ["mine-neighbours", "-k", "0"],
        ["pretrain", "--steps", "0"],
        ["pretrain", "--seed", "-1"],
        ["pretrain", "--noise", "far"],
        ["pretrain", "--track", "paper"],
        ["export", "x", "--to", "word"],
    ],
)
def test_an_option_out_of_range_is_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(arguments) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert arguments[-2] in said[0]


@pytest.mark.parametrize("device", ["xyz", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_bad_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    (tmp_path / "words.txt").write_text("some\nwords\n")
    asked = ["embed-text", str(tmp_path / "words.txt"), "--device", device, "--workspace", str(tmp_path)]
    assert run_command(asked) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"--device {device}" in said[0]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("could not create a primitive"),
        RuntimeError("can't start new thread"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_running_out_of_memory_is_named(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Workspace, "run_folders", fail)
    monkeypatch.delenv("DPTR_DEBUG", raising=False)
    assert run_command(["finetune", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: out of memory")


def test_a_debug_variable_of_the_user_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = ["evaluate", "no-such-run", str(tmp_path), "--workspace", str(tmp_path)]
    monkeypatch.setenv("DPTR_DEBUG", "1")
    run_command(missing)
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.delenv("DPTR_DEBUG")
    run_command([*missing, "--debug"])
    assert "Traceback" in capsys.readouterr().err
    run_command(missing)
    assert "Traceback" not in capsys.readouterr().err
