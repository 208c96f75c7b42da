"""`dptr sql` on a real terminal: queries are typed, completed with Tab, recalled with the arrow, and kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from dptr.cli import run_command

_SECONDS = 120


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text("street road lane")
    root = tmp_path / "work"
    assert run_command(["embed-text", str(tmp_path / "words.txt"), "--workspace", str(root), "--quiet"]) == 0
    return root


def test_lines_are_completed_recalled_and_kept(workspace: Path, tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    pytest.importorskip("readline")
    environment = {**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(tmp_path / "state"), "INPUTRC": "/dev/null"}
    arguments = ["-m", "dptr", "sql", "--workspace", str(workspace)]

    def opened() -> Any:
        child = pexpect.spawn(sys.executable, arguments, env=environment, encoding="utf-8", timeout=_SECONDS)
        child.expect_exact("dptr> ")
        return child

    child = opened()
    child.send("select count(*) from prompts where label_l\t")
    child.expect_exact("label_length")
    child.sendline("> 0")
    child.expect(r"\b3\b")
    child.expect_exact("dptr> ")
    child.sendline("select lable from prompts")
    child.expect("Tables here")
    child.expect_exact("dptr> ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    history = tmp_path / "state" / "dptr" / "sql_history"
    assert history.read_text().splitlines()[-2:] == [
        "select count(*) from prompts where label_length> 0",
        "select lable from prompts",
    ]

    child = opened()
    child.send("\x1b[A\x1b[A")  # twice up: the query before the last, of the time before
    child.expect_exact("count(*) from prompts")
    child.sendline()
    child.expect(r"\b3\b")
    child.expect_exact("dptr> ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
