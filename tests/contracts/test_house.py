"""The code layout holds: one direction of imports, every package installed, a fast start."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

from dptr.cache import file_names

ROOT = Path(__file__).resolve().parents[2]


def test_imports_flow_one_way() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_folder_with_code_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent for top in ("cache", "pipeline", "trainer") for path in (ROOT / top).rglob("*.py")}
    expected = {"dptr"} | {"dptr." + ".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(listed) == expected


def test_every_file_that_is_no_code_is_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["dptr"]
    installed = {path for pattern in listed for path in ROOT.glob(pattern)}
    tracked = subprocess.run(
        ["git", "ls-files", "cache", "pipeline", "trainer", "recipes"], cwd=ROOT, capture_output=True, text=True
    )
    files = {ROOT / line for line in tracked.stdout.splitlines() if not line.endswith(".py")}
    assert files - installed == set()


def test_no_module_imports_itself_on_a_way_round() -> None:
    """Imports inside functions count, too; those for type checking alone do not, as nothing runs them."""
    graph = grimp.build_graph("dptr", exclude_type_checking_imports=True, cache_dir=None)
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imported) > 50
    try:
        graphlib.TopologicalSorter(imported).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_a_files_name_is_written_in_one_place() -> None:
    names = {
        value for value in vars(file_names).values() if isinstance(value, str) and re.fullmatch(r"\w+\.\w+", value)
    }
    assert len(names) > 10
    twice = [
        f"{path.relative_to(ROOT)}: {node.value}"
        for top in ("cache", "pipeline", "trainer")
        for path in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names and path.name != "file_names.py"
    ]
    assert twice == []


def test_no_stray_modules_at_the_root() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "cli.py"}


def test_start_loads_no_heavy_library() -> None:
    code = (
        "import sys, dptr, dptr.cli\n"
        "try: dptr.cli.run_command(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'faiss', 'pyarrow', 'duckdb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
