"""The code layout: imports in one direction, everything installed, shapes in docstrings, recipes that open alike."""

from __future__ import annotations

import ast
import graphlib
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import pytest

from dptr.cache import file_names

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PATTERNS = ("*.py", "cache/**/*.py", "pipeline/**/*.py", "trainer/**/*.py")
SOURCES = {
    path: ast.parse(path.read_text(encoding="utf-8")) for pattern in PATTERNS for path in sorted(ROOT.glob(pattern))
}
#: Come with a declared package that has no use without them.
_COME_ALONG = {"markupsafe", "cycler"}
#: An account with a service is the user's own affair; `--track wandb` says how to install it. A notebook has IPython.
_USERS_OWN = {"wandb", "ipython"}
_ARRAY = re.compile(r"\b(Tensor|NDArray|ndarray)\b")
#: Tensors by name, such as a model's weights, have no one shape.
_BY_NAME = re.compile(r"dict\[str, [^\]]*(Tensor|NDArray|ndarray)[^\]]*\]*")
#: ``(batch, length)``, ``(rows,)``, a word that says there is none, or a reference to where the shape stands.
_SHAPE = re.compile(r"\([a-z_0-9. ]+,[^()]*\)|\bscalar\b|\bshapes?\b")


def test_imports_flow_one_way() -> None:
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_folder_with_code_is_installed() -> None:
    folders = {path.parent.relative_to(ROOT).parts for path in SOURCES}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == {".".join(("dptr", *parts)) for parts in folders}


def test_every_file_that_is_no_code_is_installed() -> None:
    listed = PROJECT["tool"]["setuptools"]["package-data"]["dptr"]
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
        for path, tree in SOURCES.items()
        for node in ast.walk(tree)
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


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=\[; ]", line)[0].lower().replace("_", "-") for line in requirements}


def imported() -> set[str]:
    """Return the distributions that the package imports, lazily or not."""
    modules = set()
    for tree in SOURCES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    known = packages_distributions()
    outside = modules - set(sys.stdlib_module_names) - {"dptr"}
    return {known.get(module, [module])[0].lower().replace("_", "-") for module in outside}


def test_dependencies_are_those_that_are_imported() -> None:
    extras, needed = PROJECT["project"]["optional-dependencies"], names_of(PROJECT["project"]["dependencies"])
    optional = {name for extra in extras for name in names_of(extras[extra])}
    found = imported()
    assert needed - found == set(), "declared and not imported"
    assert found - needed - optional - _COME_ALONG - _USERS_OWN == set(), "imported and not declared"


def annotations_of(function: ast.FunctionDef) -> list[str]:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    given = [argument.annotation for argument in arguments] + [function.returns]
    return [ast.unparse(annotation) for annotation in given if annotation is not None]


def public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, list[str], str]]:
    """Yield name, annotations and docstring of the public functions, classes and methods."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        said = ast.get_docstring(node) or ""
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, annotations_of(node), said
            continue
        fields = [ast.unparse(field.annotation) for field in node.body if isinstance(field, ast.AnnAssign)]
        made_with = [f for f in node.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
        yield prefix + node.name, fields + [text for made in made_with for text in annotations_of(made)], said
        yield from public(node.body, f"{prefix}{node.name}.")


def test_docstrings_of_what_takes_or_returns_arrays_give_shapes() -> None:
    silent, total = [], 0
    for path, tree in SOURCES.items():
        for name, types, said in public(tree.body):
            if any(_ARRAY.search(_BY_NAME.sub("", text)) for text in types):
                total += 1
                if not _SHAPE.search(said):
                    silent.append(f"{path.relative_to(ROOT)}: {name}")
    assert total > 80
    assert len(silent) <= 0.1 * total, "\n".join(silent)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_opens_with_its_command_its_hours_and_the_accuracy_to_expect(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    opening = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    for wanted in ("#   dptr ", "# Hours: ", "# Accuracy to expect: "):
        assert any(line.startswith(wanted) for line in opening), wanted
