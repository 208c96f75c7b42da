"""Logs of a run are cut to what its checkpoint holds."""

from __future__ import annotations

import json
from pathlib import Path

from dptr.trainer.training import step_log


def test_half_a_line_at_the_end_of_the_log_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 2}) + "\n" + json.dumps({"step": 4}) + '\n{"ste')
    step_log.keep_up_to(path, 3)
    assert path.read_text() == '{"step": 2}\n'


def test_damaged_lines_of_a_log_take_no_others_with_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 2}\n{"st\xff\n[]\n{"step": 4}\n{"step": 6}\n{"ste')
    step_log.keep_up_to(path, 5)
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n'
