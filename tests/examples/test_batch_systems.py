"""The examples for batch systems run as they stand, each task with what its scheduler sets."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One in which ``dptr`` prints the command line that it was given."""
    command = tmp_path / "bin" / "dptr"
    command.parent.mkdir()
    command.write_text(f'#!/bin/bash\nprintf "%s\\n" "{shlex.quote(sys.executable)} -m dptr $*"\n')
    command.chmod(0o755)
    return {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"}


def part_of(said: str) -> str:
    words = said.split()
    return words[words.index("--part") + 1]


def test_each_task_of_a_slurm_array_makes_its_part(environment: dict[str, str]) -> None:
    script = EXAMPLES / "slurm_array.sh"
    for number in ("1", "16"):
        task = {**environment, "SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_TASK_COUNT": "16"}
        said = subprocess.run(["bash", script], env=task, capture_output=True, text=True, check=True).stdout
        assert part_of(said) == f"{number}/16"
    assert subprocess.run(["bash", script], env=environment, capture_output=True).returncode != 0, "no array"


def test_each_pod_of_an_indexed_job_makes_its_part(environment: dict[str, str]) -> None:
    job: dict[str, Any] = yaml.safe_load((EXAMPLES / "kubernetes_indexed_job.yaml").read_text(encoding="utf-8"))
    container = job["spec"]["template"]["spec"]["containers"][0]
    parts = set()
    for index in range(job["spec"]["completions"]):
        pod = {**environment, "JOB_COMPLETION_INDEX": str(index)}
        command = [*container["command"], *container["args"]]
        parts.add(part_of(subprocess.run(command, env=pod, capture_output=True, text=True, check=True).stdout))
    assert parts == {f"{number}/16" for number in range(1, 17)}
