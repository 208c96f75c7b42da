"""Labels that went past Python in bulk are those that Python would have made, one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptr.cache.text.charset import LetterCase, fold_case
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.text.corpus import count_labels
from dptr.pipeline.text.corpus_files import Rows

PLAIN = ["a", "B-1", "a  b", " ", "\n"]
ODD = ["é", "e\u0301", "\uff21", "\ufeff", "日", "ß", "\0", "\t", "\r\n", "\x1c", "\x0b", "\u3000", "\u2028"]
TEXT = st.lists(st.sampled_from(PLAIN) | st.sampled_from(PLAIN + ODD), max_size=12).map("".join)


@pytest.mark.parametrize("unit", ["word", "line"])
@pytest.mark.parametrize("keep_spaces", [False, True])
@settings(max_examples=100, deadline=None)
@given(text=TEXT, to_ascii=st.booleans(), case=st.sampled_from([None, "lower", "upper"]))
def test_the_fast_way_and_the_plain_way_agree(
    text: str, unit: Any, keep_spaces: bool, to_ascii: bool, case: LetterCase | None
) -> None:
    normalization = Normalization(keep_spaces=keep_spaces, ascii=to_ascii)
    lines = text.split("\n")
    rows = Rows(pa.array([f"{line}\n".encode() for line in lines], pa.binary()), np.arange(1, len(lines) + 1))
    rejected: list[int | None] = []
    found = count_labels(rows, unit, normalization, case, lambda line, item, reason: rejected.append(line))

    expected: Counter[tuple[str, int]] = Counter()
    folded = 0
    for line_number, line in enumerate(lines, 1):
        pieces = _ascii_words(line) if unit == "word" else [line.strip("\t\r\x0b ")]
        for piece in pieces:
            piece = piece.removeprefix("\ufeff")
            if "\0" not in piece:
                for item in piece.split() if unit == "word" else [piece] * bool(piece.split()):
                    label = normalization.apply(item)
                    expected[fold_case(label, case), line_number] += 1
                    folded += fold_case(label, case) != label
    first: dict[str, int] = {}
    for label, line_number in expected:
        first.setdefault(label, line_number)
    counts: Counter[str] = Counter()
    lines_found: dict[str, int] = {}
    for label, count, line_number in zip(
        found.labels.to_pylist(), found.counts.tolist(), found.lines.tolist(), strict=True
    ):
        counts[label] += count
        lines_found[label] = min(line_number, lines_found.get(label, line_number))
    assert found.folded == folded
    assert lines_found == first
    assert counts == Counter(
        {label: sum(count for (same, _), count in expected.items() if same == label) for label in first}
    )


def _ascii_words(line: str) -> list[str]:
    for space in "\t\r\x0b":
        line = line.replace(space, " ")
    return [word for word in line.split(" ") if word]


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
