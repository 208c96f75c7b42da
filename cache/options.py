"""Options that commands of several stages share, and the largest values they may take."""

from pathlib import Path
from typing import Annotated

import typer

#: Seeds fit a signed 64-bit integer, which is what every file and library here can hold.
LARGEST_SEED = 2**63 - 1
MOST_WORKERS = 256
#: In characters; no CLIP reads as many, and no decoder of ours writes more.
LONGEST_LABEL = 1000

Out = Annotated[Path | None, typer.Option("-o", "--out", help="Output folder; default: in the workspace.")]
PromptsFolder = Annotated[Path | None, typer.Option("--prompts", help="Prompt store; default: the workspace's.")]
OrpFolder = Annotated[Path | None, typer.Option("--orp", help="ORP bank; default: the workspace's.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or auto (cuda if available).")]
