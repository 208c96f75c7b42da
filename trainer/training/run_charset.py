"""Which charset a run goes on with, and in which order its decoder emits labels."""

from __future__ import annotations

from pathlib import Path

from dptr.cache.charset import Charset
from dptr.cache.file_names import RUN_FILE
from dptr.trainer.model.decoders import emitted_by
from dptr.trainer.training.runs import Run, Trained
from dptr.trainer.training.settings import DecoderSettings


def charset_in(folder: Path) -> Charset | None:
    """Return the charset of the run in ``folder``; None where there is none.

    Raises:
        DamagedStore: the run's description cannot be read.
    """
    return Run.load(folder).charset if (folder / RUN_FILE).is_file() else None


def charset_of_run(folder: Path, wanted: Charset, decoder: DecoderSettings, start: Trained | None = None) -> Charset:
    """Return the charset ``wanted`` in the order that the decoder of the run in ``folder`` emits labels in.

    A run that was begun goes on in its own order, and one that starts from a decoder which has learnt to read from
    right to left in that one's. For others the kind of the decoder says.

    Raises:
        DamagedStore: the run's description cannot be read.
    """
    begun = charset_in(folder)
    if begun is not None and begun.same_units_as(wanted):
        return begun
    if start is None:
        return emitted_by(decoder.kind, wanted)
    if start.charset.runs_right_to_left and start.recipe.decoder.kind == decoder.kind:
        return wanted.emitted_in(start.charset.order)
    return emitted_by(decoder.kind, wanted.emitted_in(None))
