"""Several paths of one kind: positional DATA, and options that are repeated; a word that is no path is rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from dptr.cli import app, run_command

A, B, C, D = map(Path, "ABCD")


def parsed(name: str, *arguments: str) -> dict[str, Any]:
    group = get_command(app)
    context = group.make_context("dptr", [name], resilient_parsing=True)
    return group.commands[name].make_context(name, list(arguments), parent=context).params  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "data", "validation"),
    [
        ("A B --validation C", [A, B], [C]),
        ("A --validation C --validation D", [A], [C, D]),
        ("--validation C A --steps 5 B --quiet", [A, B], [C]),
    ],
)
def test_data_is_positional_and_options_are_repeated(arguments: str, data: list[Path], validation: list[Path]) -> None:
    params = parsed("finetune", *arguments.split())
    assert [list(params[name] or ()) for name in ("data", "validation")] == [data, validation]


def test_photos_to_be_rejected_are_repeated() -> None:
    params = parsed("build-orp-bank", "A", "B", "--exclude-near", "C", "--exclude-near", "D", "--seed", "1")
    assert (params["photos"], params["exclude_near"]) == ([A, B], [C, D])


def test_a_run_stands_before_the_data() -> None:
    params = parsed("evaluate", "run", "A", "B", "--device", "cpu")
    assert params["names"] == ["run", "A", "B"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["finetune", "{crops}", "missing"],
        ["finetune", "{crops}", "--from", "none", "--validation", "missing"],
        ["finetune", "{crops}", "--validation", "{crops}", "missing"],
        ["evaluate", "{crops}", "missing"],
        ["evaluate", "missing", "{crops}"],
        ["export", "bundled", "--to", "onnx", "--data", "{crops}", "missing"],
    ],
)
def test_a_word_that_is_no_path_is_named(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    crops = tmp_path / "crops"
    crops.mkdir()
    (crops / "labels.tsv").write_text("a.png\tword\n")
    assert run_command([word.format(crops=crops) for word in arguments]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "missing" in said


def test_a_training_without_data_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["finetune"]) == 2
    assert "no data named. Give labelled crops" in capsys.readouterr().err
