"""Values that options of training may take; in a file of their own, so that ``--help`` loads no library."""

from __future__ import annotations

from typing import Literal

#: Source of a prompt's noise; ``gaussian``: normal numbers of the same size instead of crops (the control).
NoiseDraw = Literal["random", "nearest", "mixed", "gaussian"]

#: Whether labels are sampled uniformly or by corpus count.
Sampling = Literal["uniform", "count"]

#: The Feature Merge Unit with its queries, or all image tokens as they are (the control).
FmuKind = Literal["queries", "none"]

#: What a refinement's content may attend to, see ``decoders/parseq.py``; each position's own order, or PARSeq's.
Refinement = Literal["cloze", "causal", "shared"]

#: Where the FMU's queries and keys start: at parts of the image, or at small random numbers.
FmuStart = Literal["positions", "random"]

#: The distortions that training draws from: dptr's own, or PARSeq's.
Distortions = Literal["dptr", "parseq"]

#: The arithmetic of reading; ``auto``: bf16 on CPUs that have instructions for it, else fp32.
ReadingPrecision = Literal["auto", "fp32", "bf16"]

#: Evaluation protocol: the field's for Latin, or the Chinese benchmark's.
Protocol = Literal["field", "chinese"]

#: Experiment trackers.
Tracker = Literal["tensorboard", "wandb"]

#: Export formats.
ExportTarget = Literal["onnx", "safetensors", "parseq", "openocr"]
