"""What a training command came to, for people and for ``--json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainingSummary:
    """What a run came to.

    Attributes:
        out: the run's folder. rows: what it trained on. computed: rows drawn by this call.
        quarantined: inputs that were refused or could not be read.
        steps: optimiser steps of the run, earlier calls' included. seconds: of this call.
        metrics: the newest validation's.
    """

    out: Path
    rows: int
    computed: int
    quarantined: int
    steps: int
    seconds: float
    metrics: dict[str, float]
