"""Which word images are for validation, and which of the others are not the same pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dptr.cache.errors import UserError
from dptr.cache.progress import note, progress
from dptr.cache.row_set import RowSet
from dptr.cache.validation import validation_position
from dptr.cache.word_images.crop_columns import Columns
from dptr.cache.word_images.dataset import WordImages
from dptr.cache.word_images.kept_file import Blocks, KeptFile, blocks_in_making, places_beside
from dptr.cache.word_images.samples import Samples

Images = TypeVar("Images", bound=WordImages)


def split(images: Images, share: float, seed: int) -> tuple[Images, Images]:
    """Choose about ``share`` of the images for validation, each by its own key and label: more data moves none.

    Returns:
        The images to train on and those for validation, each in the order of the data.

    Raises:
        UserError: one of the two would be empty.
    """
    chosen = _chosen(images.samples, share, seed)
    if share <= 0 or chosen.all():
        raise UserError(
            f"cannot keep {share:g} of {len(images)} images for validation",
            "Give a share between 0 and 1, or more data",
        )
    validation = images.only(RowSet([chosen]))
    validation.require_readable()
    return images.only(RowSet([~chosen])), validation


def without_overlap(training: Images, validation: WordImages) -> Images:
    """Return the training images that are no picture of the validation set: the bytes of pictures are compared.

    Raises:
        UserError: none would be left, or the validation set has no readable image.
    """
    validation.require_readable()
    total = len(validation) + len(training)
    with progress("comparing training and validation crops", total, "crops") as shown:

        def hashes(images: WordImages) -> Iterator[bytes | None]:
            for found in images.content_hashes():
                shown.advance()
                yield found

        held_out = set(hashes(validation)) - {None}
        apart = np.fromiter((found not in held_out for found in hashes(training)), np.bool_, len(training))
    overlapping = len(training) - int(apart.sum())
    if not overlapping:
        return training
    if overlapping == len(training):
        raise UserError(
            f"all {overlapping:,} training crops are validation crops, too",
            "Name other crops with --validation, or leave it out: a share of the data is taken",
        )
    note(f"rejected: {overlapping:,} of {len(training):,} training crops, which are validation crops, too")
    return training.only(RowSet([apart]))


def _chosen(samples: Samples, share: float, seed: int) -> NDArray[np.bool_]:
    """Return whether each sample is for validation, shape (samples,)."""
    below = np.concatenate([np.zeros(0, np.bool_), *(_below(columns, share, seed) for columns in samples.data_sets)])
    chosen = samples.pick(below)
    if share > 0 and len(samples) and not chosen.any():
        # Of few images none may fall below the share: the nearest to it is better than nothing.
        positions = np.concatenate(list(_positions(samples, seed)))
        chosen = positions <= positions.min()
    return chosen


def _below(columns: Columns, share: float, seed: int) -> NDArray[np.bool_]:
    """Return whether each crop of a data set stands below ``share``, shape (crops,): kept beside a list that is."""
    every = Samples([columns])
    listed = columns.kept
    if not isinstance(listed, KeptFile):
        return np.concatenate([np.zeros(0, np.bool_), *(part < share for part in _positions(every, seed))])
    made_from = f"{listed.made_from} {share!r} {seed}"
    places = places_beside(listed.path, f"validation {share!r} {seed}")
    blocks: Blocks | None = KeptFile.find(places, made_from)
    if blocks is None:
        with blocks_in_making(places, made_from) as making:
            for positions in _positions(every, seed):
                making.add(pa.RecordBatch.from_pydict({"below": positions < share}))
        blocks = making.made
    return np.concatenate([block.column("below").to_numpy(zero_copy_only=False) for block in blocks.blocks])


def _positions(samples: Samples, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield where samples stand in [0, 1), by hashes of key and label."""
    for piece in samples.pieces():
        names = (
            key + b"\t" + label for key, label in zip(piece.keys.to_pylist(), piece.labels.to_pylist(), strict=True)
        )
        yield np.array([validation_position(name, seed) for name in names])
