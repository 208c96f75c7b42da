"""Options that commands of several stages share, the largest values they may take, and types of arguments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

#: Argument types of the Python API: a path; one or several paths; one or several texts.
AnyPath = str | Path
Paths = str | Path | Sequence[str | Path]
Texts = str | Sequence[str]

#: Marks a parameter that the Python function lacks.
COMMAND_LINE_ONLY = "on the command line only"

#: Seeds fit a signed 64-bit integer, which is what every file and library here can hold.
LARGEST_SEED = 2**63 - 1
MOST_WORKERS = 256
#: In characters; more than any CLIP or decoder supports.
LONGEST_LABEL = 1000

WORKSPACE = "dptr_data"
WorkspaceFolder = Annotated[
    AnyPath, typer.Option("--workspace", envvar="DPTR_WORKSPACE", help="Folder that holds stores and runs.")
]
Out = Annotated[AnyPath | None, typer.Option("-o", "--out", help="Output folder; default: in the workspace.")]
PromptsFolder = Annotated[AnyPath | None, typer.Option("--prompts", help="Prompt store; default: the workspace's.")]
OrpFolder = Annotated[AnyPath | None, typer.Option("--orp", help="ORP bank; default: the workspace's.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto (cuda if available).")]


def paths_of(paths: Paths | None) -> list[Path]:
    """Return one path or several as a list; an empty one for None."""
    return [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths or ()]
