"""Labelled crops that an image tower has seen already: what a recogniser takes of them are tokens, by memory map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dptr.cache.charset import Charset
from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.normalization import Normalization
from dptr.cache.stores.manifest import kind_of
from dptr.cache.stores.word_crops import WordCropStore
from dptr.cache.word_images.dataset import Sample, UnreadableImage, WordImages

_PLAIN_VIEW = 0


@dataclass
class StoredCrops(WordImages):
    """Word images whose pictures are not at hand, in several views.

    ``rows`` says which crop of ``store`` each is, shape (samples,).
    """

    store: WordCropStore = field(kw_only=True)
    rows: NDArray[np.int64] = field(kw_only=True)

    @classmethod
    def of(cls, store: WordCropStore, charset: Charset, normalization: Normalization) -> Self:
        """List the crops of ``store`` whose labels can be used.

        Raises:
            UserError: there are none.
        """
        crops = cls(store=store, rows=np.arange(len(store)))
        usable: list[int] = []
        for number, crop in enumerate(store.crops):
            label = crops._usable(f"{crop['source']} {crop['key']}", crop["label"], charset, normalization)
            if label is not None:
                crops.samples.append(Sample(crop["source"], crop["key"], label))
                usable.append(number)
        if not usable:
            raise UserError(
                f"no usable label in {store.folder}", "Choose a charset and a longest label that fit the store"
            )
        crops.rows = np.array(usable)
        return crops

    def image(self, index: int) -> Image.Image:
        """Refuse: the pictures are not in the store."""
        raise UnreadableImage(f"the picture of {self.samples[index].key} is not in {self.store.folder}")

    def plain(self, indices: NDArray[np.int64]) -> NDArray[np.floating]:
        """Return the tokens of crops as they are, shape (batch, tokens, dim), in the precision that is stored."""
        return self.views(indices, np.full(len(indices), _PLAIN_VIEW))

    def views(self, indices: NDArray[np.int64], views: NDArray[np.int64]) -> NDArray[np.floating]:
        """Return the tokens of crops in chosen views, shape (batch, tokens, dim), in the precision that is stored."""
        return self.store.tokens(self.rows[indices], views)

    def require_tower(self, image_weights: str, name: str) -> None:
        """Check that an image tower is the one that the tokens come from; ``name`` is for people.

        Raises:
            DamagedStore: it is another one.
        """
        identity = self.store.manifest.identity
        if identity["image_weights"] != image_weights:
            raise DamagedStore(
                f"{self.store.folder} is of the image tower of {identity['encoder']}, and that of {name} differs",
                "Use that one (`--encoder clip:` and where it is now), or embed the crops again",
            )

    def only(self, indices: Sequence[int]) -> Self:
        """Return the samples at ``indices``; what was refused stays with the whole."""
        return replace(super().only(indices), rows=self.rows[np.asarray(indices, np.int64)])


def store_among(paths: Sequence[Path]) -> WordCropStore | None:
    """Return the word-crop store that ``paths`` names, or None where all are labelled crops of other forms.

    Raises:
        UserError: a store stands beside other data. DamagedStore: it is damaged.
    """
    stores = [path for path in paths if kind_of(path) == "word_crops"]
    if not stores:
        return None
    if len(paths) > 1:
        raise UserError(
            f"{stores[0]} is a word-crop store, which cannot be mixed with other data",
            "Embed all crops into one store (`dptr embed-crops`), or name the crops themselves",
        )
    return WordCropStore(stores[0])


def require_one_kind(images: WordImages, validation: WordImages) -> None:
    """Check that training and validation can be fed to one model.

    Raises:
        UserError: one of them is a store. DamagedStore: both are, but of two image towers.
    """
    if isinstance(images, StoredCrops) != isinstance(validation, StoredCrops):
        raise UserError(
            "of training and validation data one is a word-crop store and the other is not",
            "Embed both with the same --clip (`dptr embed-crops`), or name the crops themselves for both",
        )
    if isinstance(images, StoredCrops) and isinstance(validation, StoredCrops):
        theirs = validation.store.manifest.identity
        images.require_tower(theirs["image_weights"], theirs["encoder"])


def open_crops(paths: Sequence[Path], charset: Charset, normalization: Normalization) -> WordImages:
    """Open labelled crops of any form, or a word-crop store.

    Raises:
        UserError: no label can be used, or a store stands beside other data. DamagedStore: a store is damaged.
    """
    store = store_among(paths)
    if store is None:
        return WordImages.open(paths, charset, normalization)
    return StoredCrops.of(store, charset, normalization)


def fixed_by(store: WordCropStore | None, encoder: str | None, changes: Sequence[str]) -> list[str]:
    """Return what a store fixes of a recipe, as changes to it: its tower is the encoder, its views the augmentation.

    ``encoder`` may name where the same tower lies now, as ``clip:`` and a directory or hub id.

    Raises:
        UserError: something else is asked for.
    """
    if store is None:
        return []
    identity = store.manifest.identity
    kind = encoder or f"clip:{identity['encoder']}"
    asked = [change for change in changes if change.startswith(("encoder.", "finetune.augmentation"))]
    if asked or not kind.startswith("clip:"):
        what = asked[0] if asked else f"--encoder {kind}"
        raise UserError(
            f"{store.folder} fixes encoder and augmentation, so {what} cannot be had",
            "Leave it out, or train on the crops themselves",
        )
    return [f"encoder.kind={kind}", f"finetune.augmentation={identity['augmentation']}"]
