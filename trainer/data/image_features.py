"""Labelled crops from an image-feature store: a recogniser takes their image tokens, by memory map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dptr.cache.crops.dataset import UnreadableImage, WordImages
from dptr.cache.crops.samples import CropTable, Rows, Rules, Samples, positions_of
from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.rejections import Tally
from dptr.cache.stores.image_features import WordCropStore
from dptr.cache.stores.manifest import kind_of
from dptr.cache.stores.shards import StoredTokens
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.trainer.data.image_batches import CropBatches, ImageBatch, batch_order
from dptr.trainer.data.stored_memory import StoredTensor
from dptr.trainer.recipe import Recipe
from dptr.trainer.seeds import generator_of

_PLAIN_VIEW = 0


@dataclass
class StoredCrops(WordImages):
    """Image features of word images, with augmented copies, from stores of one image encoder.

    A sample's ``data_set`` is the index of its store in ``stores``, ``rows`` has its crop in that store: (samples,).
    With ``pooled`` a copy's pooled vector precedes its tokens.
    """

    stores: list[WordCropStore] = field(kw_only=True)
    rows: NDArray[np.int64] = field(kw_only=True)
    pooled: bool = False

    @classmethod
    def of(cls, stores: Sequence[WordCropStore], charset: Charset, normalization: Normalization) -> Self:
        """List the crops of ``stores`` whose labels can be used.

        Raises:
            UserError: there are none. DamagedStore: the stores are of different image encoders.
        """
        rules, rejected, changed = Rules(charset, normalization), Tally(), Tally()
        data_sets: list[CropTable] = []
        rows: list[NDArray[np.int64]] = []
        for store in stores:
            store.check_embeddings()
            crops, usable = _usable(store, rules, rejected, changed)
            data_sets.append(crops)
            rows.append(usable)
        if not sum(map(len, rows)):
            raise UserError(
                f"no usable label in {', '.join(str(store.folder) for store in stores)}",
                "Choose a charset and a longest label that fit the store",
            )
        images = cls(Samples(data_sets), rejected, changed, stores=list(stores), rows=np.concatenate(rows))
        for store in stores:
            images.require_encoder(store.manifest.identity["image_weights"], str(store.folder))
        return images

    def identity(self) -> dict[str, Any]:
        """See :meth:`WordImages.identity`; with the identity of the stores."""
        stores = [store.manifest.fingerprint() for store in self.stores]
        return {**super().identity(), "store": stores[0] if len(stores) == 1 else stores}

    @property
    def view_counts(self) -> NDArray[np.int64]:
        """Number of copies of each sample, shape (samples,)."""
        return np.array([store.copies for store in self.stores])[self.samples.every_data_set()]

    def image(self, index: int) -> Image.Image:
        """Reject: the pictures are not in the store."""
        sample = self.samples[index]
        raise UnreadableImage(f"the picture of {sample.key} is not in {self.stores[sample.data_set].folder}")

    def content_hashes(self) -> Iterator[bytes | None]:
        """Yield the SHA-256 of the picture that each sample was made from, 32 bytes."""
        of_stores = [list(store.image_hashes()) for store in self.stores]
        for number, row in zip(self.samples.every_data_set().tolist(), self.rows.tolist(), strict=True):
            yield of_stores[number][row]

    def require_readable(self) -> None:
        """Do nothing: the pictures were decoded when the store was made."""

    def plain(self, indices: NDArray[np.int64]) -> StoredTokens:
        """Return the tokens of crops as they are, shape (batch, tokens, dim), in the precision that is stored."""
        return self.views(indices, np.full(len(indices), _PLAIN_VIEW))

    def views(self, indices: NDArray[np.int64], views: NDArray[np.int64]) -> StoredTokens:
        """Return the tokens of crops in chosen views, shape (batch, tokens, dim), in the precision that is stored.

        With ``pooled``: each behind its pooled vector, shape (batch, 1 + tokens, dim). Where that is of another
        precision, or one store's is than another's, they come as float32.
        """
        numbers = self.samples.data_sets_of(indices)
        of_each = [np.flatnonzero(numbers == number) for number in range(len(self.stores))]
        parts = [
            (places, self._look(store, self.rows[indices[places]], views[places]))
            for places, store in zip(of_each, self.stores, strict=True)
            if len(places)
        ]
        if len(parts) == 1:
            return parts[0][1]
        floating = [part.floating() for _, part in parts]
        tokens = np.empty((len(indices), *floating[0].shape[1:]), np.result_type(*floating))
        for (places, _), part in zip(parts, floating, strict=True):
            tokens[places] = part
        return StoredTokens(tokens)

    def _look(self, store: WordCropStore, crops: NDArray[np.int64], views: NDArray[np.int64]) -> StoredTokens:
        tokens = store.stored_tokens(crops, views)
        if not self.pooled:
            return tokens
        # Half precision is what is stored of them.
        pooled = store.pooled(crops, views)[:, None].astype(np.float16)
        return StoredTokens(np.concatenate([pooled, tokens.floating()], axis=1))

    def require_finite(self, indices: NDArray[np.int64], views: NDArray[np.int64]) -> None:
        """Check the stored tokens of crops in chosen views, each of shape (batch,).

        Raises:
            DamagedStore: one holds NaN or infinity; the error names its shard and row.
        """
        numbers = self.samples.data_sets_of(indices)
        for number, store in enumerate(self.stores):
            chosen = numbers == number
            store.require_finite(self.rows[indices[chosen]] * store.copies + views[chosen])

    def require_encoder(self, image_weights: str, name: str) -> None:
        """Check that an image encoder is the one that the tokens come from; ``name`` is for people.

        Raises:
            DamagedStore: it is another one.
        """
        first, identity = self.stores[0], self.stores[0].manifest.identity
        if identity["image_weights"] != image_weights:
            raise DamagedStore(
                f"{first.folder} was made with the image encoder of {identity['encoder']}, not that of {name}",
                "Use that encoder (`--encoder clip:FOLDER`), or embed the crops again",
            )

    def only(self, indices: Rows | Sequence[int]) -> Self:
        """Return the samples at ``indices``; what was rejected stays with the whole."""
        return replace(super().only(indices), rows=self.rows[positions_of(indices)])


def _usable(store: WordCropStore, rules: Rules, rejected: Tally, changed: Tally) -> tuple[CropTable, NDArray[np.int64]]:
    """Return the crops of a store whose labels can be used, and which of the store's crops they are."""
    rows: list[int] = []
    numbers: dict[str, int] = {}

    def usable() -> Iterator[tuple[int, str, str]]:
        for row, (label, source, key) in enumerate(store.crops()):
            used = rules.usable(source, key, label, rejected, changed)
            if used is not None:
                rows.append(row)
                yield numbers.setdefault(source, len(numbers)), key, used

    crops = CropTable.of(usable(), [])
    return replace(crops, sources=list(numbers)), np.array(rows, np.int64)


def stores_among(paths: Sequence[Path]) -> list[WordCropStore]:
    """Return the image-feature stores that ``paths`` name; none where all are labelled crops of other forms.

    Raises:
        UserError: a store stands beside other data. DamagedStore: it is damaged.
    """
    stores = [path for path in paths if kind_of(path) == "image_features"]
    if 0 < len(stores) < len(paths):
        raise UserError(
            f"{stores[0]} is an image-feature store, which cannot be mixed with other data",
            "Embed all crops (`dptr embed-crops`), or name the crops themselves",
        )
    return [WordCropStore(path) for path in stores]


def require_one_kind(images: WordImages, validation: WordImages) -> None:
    """Check that training and validation can be fed to one model.

    Raises:
        UserError: one of them is a store. DamagedStore: both are, but of two image encoders.
    """
    if isinstance(images, StoredCrops) != isinstance(validation, StoredCrops):
        raise UserError(
            "training and validation data must both be image-feature stores or both labelled crops",
            "Embed both with the same --clip (`dptr embed-crops`), or name the crops themselves for both",
        )
    if isinstance(images, StoredCrops) and isinstance(validation, StoredCrops):
        theirs = validation.stores[0].manifest.identity
        images.require_encoder(theirs["image_weights"], theirs["encoder"])


def open_crops(paths: Sequence[Path], charset: Charset, normalization: Normalization) -> WordImages:
    """Open labelled crops of any form, or image-feature stores.

    Raises:
        UserError: no label can be used, or a store stands beside other data.
        DamagedStore: a store is damaged, or they are of different image encoders.
    """
    stores = stores_among(paths)
    if not stores:
        return WordImages.open(paths, charset, normalization)
    return StoredCrops.of(stores, charset, normalization)


def fixed_by(stores: Sequence[WordCropStore], encoder: str | None, changes: Sequence[str]) -> list[str]:
    """Return what stores fix of a recipe, as changes to it: their encoder is the encoder, their views the augmentation.

    ``encoder`` may name where the same encoder is now, as ``clip:`` and a directory or hub id.

    Raises:
        UserError: a change gives another encoder or augmentation.
    """
    if not stores:
        return []
    # Of stores that were distorted differently the first is named.
    identity = stores[0].manifest.identity
    kind = encoder or f"clip:{identity['encoder']}"
    asked = [change for change in changes if change.startswith(("encoder.", "finetune.augmentation"))]
    if asked or not kind.startswith("clip:"):
        what = asked[0] if asked else f"--encoder {kind}"
        raise UserError(
            f"{stores[0].folder} fixes encoder and augmentation, so {what} does not apply",
            "Leave it out, or train on the crops themselves",
        )
    return [f"encoder.kind={kind}", f"finetune.augmentation={float(identity['augmentation'])}"]


class StoredBatches(CropBatches):
    """Batches of stored image tokens.

    Which crops make a batch is what training on their pictures would take. A crop begins with a view of its own and
    goes round all of them, so that as many epochs pass before one is drawn again.
    """

    def __init__(self, crops: StoredCrops, charset: Charset, recipe: Recipe) -> None:
        super().__init__(charset, recipe)
        self._crops = crops
        self._order = batch_order(crops, recipe)
        self.per_epoch = self._order.batches_per_epoch
        self._view_counts = crops.view_counts
        self._first_view = generator_of(self._seed, "first views").integers(0, self._view_counts)

    def require_finite(self, number: int) -> None:
        """Check the stored rows that batch ``number`` was made of.

        Raises:
            DamagedStore: one holds NaN or infinity; the error names it.
        """
        self._crops.require_finite(*self._rows_and_views(number))

    def _rows_and_views(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows = self._order.rows_of(number)
        return rows, (self._first_view[rows] + number // self.per_epoch) % self._view_counts[rows]

    def __call__(self, number: int) -> ImageBatch:
        """Return batch ``number``, counted from 0 through all epochs."""
        rows, views = self._rows_and_views(number)
        labels = [self._crops.samples[row].label for row in rows.tolist()]
        return ImageBatch(StoredTensor.of(self._crops.views(rows, views)), self.targets(labels))
