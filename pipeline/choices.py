"""Values that options of stage 1 may take; in a file of their own, so that ``--help`` loads no library."""

from __future__ import annotations

from typing import Literal

#: Whether labels are words or lines.
Unit = Literal["word", "line"]

#: Letter case of labels; the last makes three labels of each.
Case = Literal["keep", "lower", "upper-lower-title"]

#: Embeddings of the last layer norm, or those projected into the joint space.
EmbeddingsKind = Literal["hidden", "projected"]

#: Embeddings up to and including the end token, or of the whole context.
Context = Literal["content", "full"]

#: Arithmetic of CLIP.
Precision = Literal["fp32", "bf16"]

#: Executor: this machine, or a Ray cluster.
Engine = Literal["local", "ray"]

#: Crops of a photo in an ORP bank: random rectangles, or the central square, as in CLIP's preprocessing.
CropKind = Literal["random", "whole"]
