"""`--help` and `--version`: commands by stage, options by subject, in the width of the terminal."""

from __future__ import annotations

import re
from typing import Any

import pytest
from typer.main import get_command

import dptr
from dptr.cli import app, run_command

COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_command(arguments) == 0
    return capsys.readouterr().out


def test_commands_stand_by_stage_with_a_summary_of_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = shown(capsys, "--help")
    panels = ["Get started", "Read", "Train", "Stage 1: embeddings", "Inspect", "Share"]
    assert [found for found in re.findall(r"─ ([A-Z][\w: ]+?) ─", said) if found != "Options"] == panels
    for name, command in COMMANDS.items():
        summary = command.help.split("\n\n")[0]
        assert any(name in line and summary in line for line in said.splitlines()), summary
        assert re.match(r"[A-Z][a-z-]+ .*\.$", summary), f"{name}: {summary}"


@pytest.mark.parametrize("width", [80, 120])
def test_help_takes_the_width_of_the_terminal(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert max(map(len, shown(capsys, "finetune", "--help").splitlines())) == width


@pytest.mark.parametrize("name", COMMANDS)
def test_options_stand_by_subject_and_no_type_of_python_is_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, name, "--help")
    assert "Example: dptr" in said
    assert not re.search(r"<(bool|str|int|float|Path)>|list\[", said)
    order = ["Arguments", "Data", "Model", "Training", "Output", "Machine", "Common"]
    panels = re.findall(r"─ ([A-Z]\w+) ─", said)
    assert panels == [panel for panel in order if panel in panels]


@pytest.mark.parametrize("option", ["--version", "-v"])
def test_the_version_is_printed(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, option) == f"dptr {dptr.__version__}\n"
