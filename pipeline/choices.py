"""Values that options of stage 1 may take; in a file of their own, so that ``--help`` loads no library."""

from __future__ import annotations

from typing import Literal

#: What a label is: each word of a line, or the line.
Unit = Literal["word", "line"]

#: What becomes of upper and lower case; the last makes three labels of each.
Case = Literal["keep", "lower", "upper-lower-title"]

#: Embeddings of the last layer norm, or those projected into the joint space.
EmbeddingsKind = Literal["hidden", "projected"]

#: Embeddings up to and including the end token, or of the whole context.
Context = Literal["content", "full"]

#: Arithmetic of CLIP.
Precision = Literal["fp32", "bf16"]

#: Where shards are made: on this machine, or by the workers of a Ray cluster.
Engine = Literal["local", "ray"]

#: What an ORP bank cuts out of a photo: random rectangles, or its central square, as CLIP's own preparation does.
CropKind = Literal["random", "whole"]
