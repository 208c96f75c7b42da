"""The example notebook: it runs from top to bottom, redraws one line of progress a task, and is kept as it ran."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


def outputs(path: Path) -> list[Any]:
    nbformat = pytest.importorskip("nbformat")
    return [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])]


def shown(found: list[Any], kind: str) -> Iterator[str]:
    return (output.data[kind] for output in found if kind in output.get("data", {}))


def require_predictions(found: list[Any]) -> None:
    assert [output for output in found if output.output_type == "error"] == []
    said = "\n".join(shown(found, "text/plain"))
    assert "PromptStore('dptr_data/prompts', rows=16" in said
    assert "OrpBank('dptr_data/orp'" in said
    assert "('street'," in said
    assert "no run at my_run. Runs in dptr_data/runs: pretrain-" in "".join(output.get("text", "") for output in found)
    progress = "".join(output.text for output in found if output.get("name") == "stderr")
    assert "embedding: 16/16 labels" in progress
    assert progress.count("embedding: ") == 1  # one line, redrawn
    assert "site-packages" not in progress  # no warning, no path of a machine


def test_the_notebook_is_kept_with_what_its_cells_gave() -> None:
    require_predictions(outputs(NOTEBOOK))


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    runpy.run_path(str(ROOT / "examples" / "execute_notebook.py"))["execute"](NOTEBOOK, tmp_path / "out.ipynb")
    require_predictions(outputs(tmp_path / "out.ipynb"))
