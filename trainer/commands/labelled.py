"""Labelled crops as a training takes them: with which charset, and which run that is."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dptr.cache.choices import Units
from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import UserError
from dptr.cache.text.charset import Charset
from dptr.cache.text.named_charsets import clusters_within
from dptr.cache.text.normalization import Normalization
from dptr.cache.text.units import clusters
from dptr.trainer.data.image_features import stores_among
from dptr.trainer.training.runs import charset_in


@dataclass(frozen=True)
class Labelled:
    """Crops to train on and to validate on, the charset that their labels fit, and the run's folder and identity."""

    images: WordImages
    validation: WordImages | None
    charset: Charset
    run: Path
    digest: str


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


def in_units(named: Charset, units: Units | None, paths: Sequence[Path], normalization: Normalization) -> Charset:
    """Return the charset ``named`` with labels made of ``units``; None: of its own.

    Of grapheme clusters it has those that its characters can write and the labels at ``paths`` have.

    Raises:
        UserError: its clusters would have to be taken apart, or labels are in a store, which has counted their units.
    """
    if units is None or units == named.units:
        return named
    if units == "codepoint":
        raise UserError("the charset holds grapheme clusters, not code points", "Leave --units out")
    if stores_among(paths):
        raise UserError("a store of crops keeps the units of its charset", "Leave --units out, or train on the crops")
    characters = "".join(normalization.charset(named).characters)
    found: set[str] = set()
    for sample in WordImages.open_as_written(paths).samples:
        found.update(clusters(named.fold_case(normalization.apply(sample.label))))
    return Charset(clusters_within(characters, found), "grapheme")
