"""`dptr --install-completion`: what a shell is given completes commands, options and their values."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_CODE = "import sys; sys.argv[0] = 'dptr'; from dptr.cli import main; main()"


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _CODE, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_commands_options_and_values_are_completed() -> None:
    for typed, expected in (
        ("dptr fine", "finetune"),
        ("dptr read --box", "--boxes"),
        ("dptr export --to on", "onnx"),
        ("dptr sql --format ", "table csv json parquet"),
    ):
        words = str(len(typed.split(" ")) - 1)
        found = run(_DPTR_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=words)
        assert found.split() == expected.split(), typed


def test_it_is_installed_for_bash(tmp_path: Path) -> None:
    # The shell is named: which one a test was started from, and whether from one at all, differs.
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    installed = run("--install-completion", "bash", HOME=str(tmp_path), **named)
    assert "completion installed" in installed
    script = next(path for path in tmp_path.rglob("*") if path.is_file() and "_DPTR_COMPLETE" in path.read_text())
    assert script.name in (tmp_path / ".bashrc").read_text()
