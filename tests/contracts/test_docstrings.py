"""Public things that take or return arrays say of what shape: a newcomer should not have to run them to find out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_ARRAY = re.compile(r"\b(Tensor|NDArray|ndarray)\b")
#: Tensors by name, such as a model's weights, have no one shape.
_BY_NAME = re.compile(r"dict\[str, [^\]]*(Tensor|NDArray|ndarray)[^\]]*\]*")
#: ``(batch, length)``, ``(rows,)``, a word that says there is none, or a reference to where the shape stands.
_SHAPE = re.compile(r"\([a-z_0-9. ]+,[^()]*\)|\bscalar\b|\bshapes?\b")


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
    for top in ("cache", "pipeline", "trainer"):
        for path in sorted((ROOT / top).rglob("*.py")):
            for name, types, said in public(ast.parse(path.read_text(encoding="utf-8")).body):
                if any(_ARRAY.search(_BY_NAME.sub("", text)) for text in types):
                    total += 1
                    if not _SHAPE.search(said):
                        silent.append(f"{path.relative_to(ROOT)}: {name}")
    assert total > 80
    assert len(silent) <= 0.1 * total, "\n".join(silent)
