"""Options that several commands of stage 1 share."""

from typing import Annotated

import typer

from dptr.cache.choices import EmbeddingsDtype, Units
from dptr.pipeline.choices import Engine, Precision

ClipName = Annotated[
    str, typer.Option("--clip", help="`tiny` or `scripts` (bundled), a directory, a hub id, or TEXT+IMAGE.")
]
MaxBad = Annotated[int | None, typer.Option(min=0, help="Fail (exit 4) when more inputs than this are rejected.")]
Dtype = Annotated[EmbeddingsDtype, typer.Option("--dtype", help="How embeddings are stored.")]
Arithmetic = Annotated[Precision, typer.Option("--precision", help="Arithmetic of CLIP.")]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Tokens or pictures encoded at once; by default what suits the device.")
]
PartOf = Annotated[
    str | None, typer.Option("--part", help="Make a share of it, such as 3/16; `dptr merge` joins all of them.")
]
EngineName = Annotated[Engine, typer.Option("--engine", help="Where it is done: here, or on a Ray cluster.")]
Address = Annotated[str | None, typer.Option("--address", help="Ray cluster to join; else one starts on this machine.")]
EngineWorkers = Annotated[
    int | None, typer.Option("--engine-workers", min=1, help="Ray: by default one for each GPU, or else for each CPU.")
]
CharsetName = Annotated[
    str, typer.Option("--charset", help="36, 62, 94, a script (ja, ar, …), a file of characters, or several (94+ru).")
]
LearntCharset = Annotated[
    str,
    typer.Option("--charset", help="36, 62, 94, a script (ja, ar, …), a file, several (94+ru), or auto: the corpus's."),
]
UnitsKind = Annotated[
    Units | None,
    typer.Option("--units", help="What a label is made of; grapheme where a script writes marks on letters."),
]
