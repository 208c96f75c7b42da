"""How many processors a process may keep busy: those it may run on, or what a quota of time leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dptr.cache import processes
from dptr.cache.processes import start_no_more_threads_than_usable, usable_processors

#: A Python in which a quota leaves one of two cores: threads of torch after ``import dptr``, or after a command.
IMPORT_UNDER_QUOTA = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("dptr.cache.processes", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module._cores, module.usable_processors = lambda: 2, lambda: 1
sys.modules[spec.name] = module
import dptr
assert "torch" not in sys.modules
if sys.argv[2] == "command":
    from dptr.cli import main
    sys.stdout = sys.stderr
    try:
        main(["--help"])
    except SystemExit:
        sys.stdout = sys.__stdout__
import torch
print(torch.get_num_threads())
"""
THREADS_OF_TORCH = "import torch; print(torch.get_num_threads())"


def linux(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Write what Linux shows of control groups, and return the folder that it lies in."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture
def _eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_cores", lambda: 8)


GROUP = "1:memory:/\n0::/batch/job"
OUTER, JOB = "sys/fs/cgroup/batch/cpu.max", "sys/fs/cgroup/batch/job/cpu.max"


@pytest.mark.usefixtures("_eight_cores")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({JOB: "200000 100000"}, 2, id="quota"),
        pytest.param({JOB: "max 100000"}, 8, id="no quota"),
        pytest.param({JOB: "250000 100000"}, 2, id="half a core is none"),
        pytest.param({JOB: "50000 100000"}, 1, id="half a core alone"),
        pytest.param({JOB: "6400000 100000"}, 8, id="more than there are"),
        pytest.param({JOB: "400000 100000", OUTER: "300000 100000"}, 3, id="outer group"),
        pytest.param({"sys/fs/cgroup/cpu.max": "100000 50000"}, 2, id="path of the host"),
    ],
)
def test_a_quota_of_processor_time_leaves_fewer(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    assert usable_processors(linux(tmp_path, GROUP, files)) == expected


@pytest.mark.usefixtures("_eight_cores")
def test_without_control_groups_all_cores_count(tmp_path: Path) -> None:
    assert usable_processors(tmp_path) == 8


def test_here_there_is_at_least_one_and_no_more_than_cores() -> None:
    assert 1 <= usable_processors() <= (os.cpu_count() or 1)


@pytest.mark.usefixtures("_eight_cores")
@pytest.mark.parametrize(
    ("usable", "already", "expected"), [(2, None, "2"), (8, None, None), (2, "5", "5")], ids=["quota", "none", "set"]
)
def test_openmp_is_told_of_a_quota_alone_and_what_is_set_stays(
    monkeypatch: pytest.MonkeyPatch, usable: int, already: str | None, expected: str | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if already:
        monkeypatch.setenv("OMP_NUM_THREADS", already)
    monkeypatch.setattr(processes, "usable_processors", lambda: usable)
    start_no_more_threads_than_usable()
    assert os.environ.get("OMP_NUM_THREADS") == expected


@pytest.mark.parametrize(("how", "quota", "already_set"), [("command", "1", "2"), ("import", None, "2")])
def test_commands_set_torchs_threads_and_importing_dptr_does_not(how: str, quota: str | None, already_set: str) -> None:
    free = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    untouched = subprocess.check_output([sys.executable, "-c", THREADS_OF_TORCH], env=free, text=True).strip()
    for environment, expected in ((free, quota or untouched), ({**free, "OMP_NUM_THREADS": "2"}, already_set)):
        command = [sys.executable, "-c", IMPORT_UNDER_QUOTA, processes.__file__, how]
        assert subprocess.check_output(command, env=environment, text=True).strip() == expected
