"""Labels are counted on disk: what it rejects is one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL_DISK = """
import resource, sys
from dptr.cli import run_command
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
sys.exit(run_command(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of this kind")
def test_a_full_disk_for_temporary_files_is_one_line_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("some\nwords\n")
    command = ["embed-text", str(tmp_path / "words.txt"), "-o", str(tmp_path / "store"), "--device", "cpu", "--quiet"]
    (tmp_path / "small disk").mkdir()
    ended = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *command],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "small disk")},
    )
    assert ended.returncode == 2, ended.stderr
    assert str(tmp_path / "small disk") in ended.stderr
    assert "TMPDIR=" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not list((tmp_path / "small disk").glob("dptr-*"))
