"""Values that options of several commands may take; in a file of their own, so that ``--help`` loads no library."""

from __future__ import annotations

from typing import Literal

#: How embeddings are stored: halves, floats, or bytes with one scale a token.
EmbeddingsDtype = Literal["float16", "float32", "int8"]

#: Unicode normal form of labels.
UnicodeForm = Literal["nfc", "nfkc", "none"]

#: Unit of a label: code points or grapheme clusters.
Units = Literal["codepoint", "grapheme"]

#: The order in which a decoder emits a label: logical (as typed) or visual (left to right).
ReadingOrder = Literal["logical", "visual"]

#: Output formats of ``dptr sql``.
AnswerForm = Literal["table", "csv", "json", "parquet"]

#: The bundled CLIPs: English, and seven scripts (see their model cards in pipeline/clip/).
BUNDLED_CLIPS = ("tiny", "scripts")

#: The bundled recognisers by their names on the command line: English, and seven scripts.
BUNDLED_RECOGNISERS = ("bundled", "scripts")


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
