"""Where the words behind an option of several paths go: what is to be validated on is never trained on."""

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
        ("--data A --validation B C", [A], [B, C]),
        ("--validation B C --data A D", [A, D], [B, C]),
        ("--data A B --steps 5 --validation C --quiet --validation D", [A, B], [C, D]),
        ("--data=A B --validation=C D", [A, B], [C, D]),
        ("--data A --data B", [A, B], []),
        ("--data - --validation -", [Path("-")], [Path("-")]),
    ],
)
def test_words_belong_to_the_list_they_stand_behind(arguments: str, data: list[Path], validation: list[Path]) -> None:
    params = parsed("finetune", *arguments.split())
    assert params["data"] == data
    assert list(params["validation"]) == validation


def test_photos_to_be_kept_out_are_not_put_in() -> None:
    params = parsed("build-orp-bank", "A", "B", "--exclude-near", "C", "D", "--seed", "1")
    assert (params["paths"], params["exclude_near"]) == ([A, B], [C, D])
    assert parsed("build-orp-bank", "--exclude-near", "C", "D", "--", "A")["paths"] == [A]


def test_a_run_stands_before_the_data() -> None:
    params = parsed("evaluate", "run", "--data", "A", "B", "--device", "cpu")
    assert (params["names"], params["data"]) == (["run"], [A, B])


@pytest.mark.parametrize(
    "arguments",
    [
        "finetune --data A --validation B --steps 5 C",
        "finetune C --data A",
        "report run other --data A --orp B C",
        "export run --to onnx --data A -o B C",
    ],
)
def test_a_word_that_belongs_to_no_option_is_rejected(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(arguments.split()) == 2
    assert "(C)" in capsys.readouterr().err
