"""Values that options of several commands may take; in a file of their own, so that ``--help`` loads no library."""

from __future__ import annotations

from typing import Literal

#: How embeddings are stored: halves, floats, or bytes with one scale a token.
EmbeddingsDtype = Literal["float16", "float32", "int8"]

#: Unicode normal form of labels.
UnicodeForm = Literal["nfc", "nfkc", "none"]

#: What a label is a sequence of: code points, or what a person sees as one character.
Units = Literal["codepoint", "grapheme"]

#: The order in which a decoder emits a label: as it is written, or as it is seen from left to right.
ReadingOrder = Literal["logical", "visual"]

#: Forms of an answer of ``dptr sql``.
AnswerForm = Literal["table", "csv", "json", "parquet"]

#: The CLIPs that ship: English alone, and seven scripts (see their model cards in pipeline/clip/).
BUNDLED_CLIPS = ("tiny", "scripts")

#: The recognisers that ship, by the names under which commands know them: English alone, and seven scripts.
BUNDLED_RECOGNISERS = ("bundled", "scripts")
