"""Labelled crops as a training takes them: with which charset, and which run that is."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dptr.cache.charset import Charset
from dptr.cache.errors import UserError
from dptr.cache.normalization import Normalization
from dptr.cache.word_images.dataset import WordImages
from dptr.trainer.training.run_charset import charset_in


@dataclass(frozen=True)
class Labelled:
    """Crops to train on and to validate on, the charset that their labels fit, and the folder of the run."""

    images: WordImages
    validation: WordImages | None
    charset: Charset
    run: Path


def labelled(open_with: Callable[[Charset], Labelled], named: Charset, normalization: Normalization) -> Labelled:
    """Return what ``open_with`` opens with the charset ``named`` and what normalisation adds to it.

    Nothing is added where that is a run which was begun without.

    Raises:
        UserError: see :meth:`WordImages.open`.
    """
    if normalization.added_to(named):
        # Where not one label fits the charset as it is, no run was begun with it.
        with suppress(UserError):
            as_named = open_with(named)
            begun = charset_in(as_named.run)
            if begun is not None and begun.same_units_as(named):
                return replace(as_named, charset=begun)
    return open_with(normalization.charset(named))
