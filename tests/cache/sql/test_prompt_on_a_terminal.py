"""`dptr sql` on a real terminal: queries are typed and recalled with the arrow."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dptr.cli import run_command

_SECONDS = 120


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text("street road lane")
    root = tmp_path / "work"
    assert run_command(["embed-text", str(tmp_path / "words.txt"), "--workspace", str(root), "--quiet"]) == 0
    return root


def test_lines_are_answered_and_recalled(workspace: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    pytest.importorskip("readline")
    environment = {**os.environ, "TERM": "xterm", "INPUTRC": "/dev/null", "PATH": str(Path(sys.executable).parent)}
    arguments = ["-m", "dptr", "sql", "--workspace", str(workspace)]
    child = pexpect.spawn(sys.executable, arguments, env=environment, encoding="utf-8", timeout=_SECONDS)
    child.expect_exact("dptr> ")
    child.sendline("select count(*) from prompts where label_length > 0")
    child.expect(r"\b3\b")
    child.expect_exact("dptr> ")
    child.sendline("select lable from prompts")
    child.expect("Tables here")
    child.expect_exact("dptr> ")
    child.send("\x1b[A\x1b[A")  # twice up: the query before the last
    child.expect_exact("count(*) from prompts")
    child.sendline()
    child.expect(r"\b3\b")
    child.expect_exact("dptr> ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
