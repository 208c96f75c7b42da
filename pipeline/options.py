"""Options that several commands of stage 1 share."""

from __future__ import annotations

from typing import Annotated

import typer

from dptr.cache.choices import EmbeddingsDtype, Engine, Precision, Units
from dptr.cache.errors import UserError
from dptr.cache.options import COMMAND_LINE_ONLY

ClipName = Annotated[
    str, typer.Option("--clip", help="`tiny` or `scripts` (bundled), a folder, a hub id, or TEXT+IMAGE.")
]
MaxBad = Annotated[int | None, typer.Option(min=0, help="Exit with 4 when more inputs than this are rejected.")]
Dtype = Annotated[EmbeddingsDtype, typer.Option("--dtype", help="Storage type of the embeddings.")]
Arithmetic = Annotated[Precision, typer.Option("--precision", help="Arithmetic of the CLIP encoder.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Tokens or images per batch; default: by device.")]
PartOf = Annotated[
    str | None,
    typer.Option("--part", help="Make one of N parts, for example 3/16; `dptr merge` joins parts of a store."),
    COMMAND_LINE_ONLY,
]
EngineName = Annotated[Engine, typer.Option("--engine", help="Run in this process or on a Ray cluster.")]
Address = Annotated[
    str | None, typer.Option("--address", help="Address of the Ray cluster; default: start a local one.")
]
EngineWorkers = Annotated[
    int | None,
    typer.Option("--engine-workers", min=1, help="Number of Ray workers; default: one per GPU, else per CPU."),
]
CharsetName = Annotated[
    str, typer.Option("--charset", help="36, 62, 94, a language (ja, ar, …), a file of characters, or several (94+ru).")
]
LearntCharset = Annotated[
    str,
    typer.Option(
        "--charset", help="36, 62, 94, a language (ja, ar, …), a file, several (94+ru), or auto (from the corpus)."
    ),
]
UnitsKind = Annotated[
    Units | None,
    typer.Option("--units", help="Unit of a label; grapheme for scripts with combining marks."),
]


def resolve_device(name: str) -> str:
    """Return the torch device of a name: ``cuda`` or ``cpu`` for ``auto``, any other as it is.

    Raises:
        UserError: this machine has no such device.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # The meta device stores no values, so reading one back proves that the device is usable.
        torch.zeros(1, device=name).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device {name} is not usable here", "Use cpu, or auto") from error
    return name
