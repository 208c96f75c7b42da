"""What a user can get wrong is one line with what to do; nothing is taken silently, nothing is "unexpected"."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from dptr.cli import run_command


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("some\nwords\n")
    return path


@pytest.fixture(scope="module")
def trained(stores: Path, small: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with stores and a run of one step."""
    workspace = shutil.copytree(stores, tmp_path_factory.mktemp("trained") / "dptr_data")
    out = str(workspace / "runs" / "pretrained")
    command = ["pretrain", "--steps", "1", *small("decoder", "pretrain"), "-o", out, "--device", "cpu"]
    assert run_command([*command, "--workspace", str(workspace), "--quiet"]) == 0
    return workspace


def rejected(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """Run a command that must be rejected in one line and return that line."""
    assert run_command([*arguments, "--quiet"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    assert "unexpected" not in line
    return line


@pytest.mark.parametrize(
    "arguments",
    [
        ["embed-text", "{words}", "-o", ""],
        ["embed-text", "{words}", "--workspace", ""],
        ["embed-text", "{words}", "--out="],
        ["render-words", "{words}", "-o", ""],
        ["verify", ""],
        ["demo", "-o", ""],
    ],
)
def test_an_empty_argument_is_not_the_current_folder(
    arguments: list[str],
    words: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    said = rejected(capsys, *(argument.format(words=words) for argument in arguments))
    assert "an argument is empty" in said
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["embed-text", "{words}", "--max-label-length", "9" * 20], "--max-label-length"),
        (["embed-text", "{words}", "--workspace", "{here}/\udcff"], r"\udcff"),
        (["pretrain", "--workspace", "{trained}", "--set", "decoder.kind=\udcff"], r"\udcff"),
        (["read", "bundled"], "no image named"),
        (["read", "{here}/sign.png"], "sign.png does not exist. Name picture files or folders"),
    ],
)
def test_bad_usage_is_named(
    arguments: list[str], told: str, words: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"words": words, "here": tmp_path, "trained": trained}
    assert told in rejected(capsys, *(argument.format(**places) for argument in arguments))


@pytest.mark.parametrize("option", ["--prompts", "--orp"])
@pytest.mark.parametrize("command", [["sql", "select 1"], ["report", "pretrained"]])
def test_a_store_that_is_named_must_be_one(
    command: list[str], option: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = rejected(capsys, *command, option, str(tmp_path), "--workspace", str(trained))
    assert f"no store in {tmp_path}" in said


def test_an_export_to_where_nothing_can_be_written_is_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject(*_: object, **__: object) -> None:
        raise SafetensorError(f'I/O error: Read-only file system (os error 30) at path "{tmp_path}/.tmp1"')

    monkeypatch.setattr("dptr.trainer.model.model_file.save_file", reject)
    asked = ["export", "pretrained", "--to", "safetensors", "-o", str(tmp_path / "x.safetensors")]
    said = rejected(capsys, *asked, "--workspace", str(trained))
    assert f"{tmp_path}/.tmp1: Read-only file system" in said


def test_a_terminal_obeys_nothing_that_stands_in_a_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff\x1b]0;title\x07\x1b[2J\n")
    said = rejected(capsys, "embed-text", str(bad), "--workspace", str(tmp_path))
    assert "invalid UTF-8" in said
    assert said.isprintable(), said


@pytest.mark.usefixtures("signals_are_heard")
def test_ctrl_c_in_a_terminal_is_one_line_from_all_processes(tmp_path: Path) -> None:
    """A terminal sends it to the workers, too."""
    (tmp_path / "words.txt").write_text("word\n")
    command = [sys.executable, "-m", "dptr", "render-words", "words.txt", "-o", "crops"]
    started = subprocess.Popen(
        [*command, "--workers", "2", "--count", "1000000", "--quiet"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not len(list((tmp_path / "crops").rglob("*.jpg"))) > 2:
        assert started.poll() is None
        time.sleep(0.1)
    subprocess.run(["kill", "-s", signal.SIGINT.name.removeprefix("SIG"), "--", f"-{started.pid}"], check=True)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 130
    assert len(said.splitlines()) == 1, said


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["init"], "error: Missing argument 'DATA'. See `dptr init --help`"),
        (["pretrian"], "error: No such command 'pretrian'. Did you mean 'pretrain'? See `dptr --help`"),
        (["predict", "a.png"], "error: No such command 'predict'. Did you mean 'read'? See `dptr --help`"),
        (
            ["train", "crops/"],
            "error: No such command 'train'. Did you mean 'finetune' (on labelled crops) or 'pretrain' (on text)? "
            "See `dptr --help`",
        ),
    ],
)
def test_a_wrong_command_line_names_the_help_that_tells_more(
    typed: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(typed) == 2
    assert capsys.readouterr().err.strip() == said
