"""Which word images are for validation, and which of the others are not the same pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dptr.cache.crops.dataset import WordImages
from dptr.cache.crops.samples import Samples
from dptr.cache.errors import UserError
from dptr.cache.progress import note, progress
from dptr.cache.row_set import RowSet
from dptr.cache.validation import validation_position

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
    positions = np.fromiter((validation_position(name, seed) for name in samples.names()), np.float64, len(samples))
    chosen = positions < share
    # Of few images none may fall below the share: the nearest to it is better than nothing.
    return chosen if chosen.any() or share <= 0 or not len(samples) else positions <= positions.min()
