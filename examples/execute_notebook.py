"""Run a notebook from top to bottom in an empty folder, and write it with what its cells gave.

python examples/execute_notebook.py [NOTEBOOK] [-o OUT]

Without OUT the notebook itself is written anew: `make notebook` does so with examples/notebook.ipynb.

Smallest size: -o out.ipynb
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from dptr.cache.errors import run_script

HERE = Path(__file__).parent
_SECONDS_A_CELL = 1800


def execute(source: Path, out: Path) -> None:
    """Run every cell of ``source`` and write the whole to ``out``; a cell that fails raises."""
    notebook = nbformat.read(source, as_version=4)
    with tempfile.TemporaryDirectory(prefix="dptr-notebook-") as folder:
        client = NotebookClient(notebook, timeout=_SECONDS_A_CELL, kernel_name="python3", coalesce_streams=True)
        client.execute(cwd=folder)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran: another text at every run
    nbformat.write(notebook, out)


def main() -> None:
    """Parse, run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", type=Path, nargs="?", default=HERE / "notebook.ipynb")
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    execute(arguments.notebook, arguments.out or arguments.notebook)


if __name__ == "__main__":
    run_script(main)
