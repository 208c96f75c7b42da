"""What is declared is used, and what is used is declared."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Come with a declared package that has no use without them.
_COME_ALONG = {"markupsafe"}
#: An account with a service is the user's own affair; `--track wandb` says how to install it. A notebook has IPython.
_USERS_OWN = {"wandb", "ipython"}


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=\[; ]", line)[0].lower().replace("_", "-") for line in requirements}


def imported() -> set[str]:
    """Return the distributions that the package imports, lazily or not."""
    modules = set()
    folders = (ROOT / top for top in ("cache", "pipeline", "trainer"))
    for path in [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    known = packages_distributions()
    outside = modules - set(sys.stdlib_module_names) - {"dptr"}
    return {known.get(module, [module])[0].lower().replace("_", "-") for module in outside}


def test_dependencies_are_those_that_are_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = names_of(project["dependencies"])
    optional = {name for extra in extras for name in names_of(extras[extra])}
    found = imported()
    assert needed - found == set(), "declared and not imported"
    assert found - needed - optional - _COME_ALONG - _USERS_OWN == set(), "imported and not declared"
