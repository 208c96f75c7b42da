"""Crops of a trial: opened once, as few as an arm asks for, and known by what is in them."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from dptr.cache.charset import Charset
from dptr.cache.errors import UserError
from dptr.cache.normalization import Normalization
from dptr.cache.word_images.dataset import WordImages
from dptr.trainer.ablation.grid import DataSet
from dptr.trainer.data.stored_crops import StoredCrops, fixed_settings, open_crops, stores_among
from dptr.trainer.training.recipe import Recipe


def open_data(trial_data: dict[str, DataSet], charset: str, recipe: Recipe) -> WordImages:
    """Open the crops that a trial trains on; a smaller number of crops is a part of a larger one of the same seed.

    Raises:
        UserError: a data set is missing, has no usable label, or fewer crops than asked for.
    """
    paths = [require(Path(str(data.path)), f"data {name!r}", data.made_by) for name, data in trial_data.items()]
    images = _opened(tuple(paths), charset, recipe.decoder.max_label_length)
    data_sets = images.samples.every_data_set()
    kept: list[int] = []
    for number, (name, data) in enumerate(trial_data.items()):
        rows = np.flatnonzero(data_sets == number).tolist()
        if data.crops is not None and data.crops > len(rows):
            raise UserError(f"data {name!r} has {len(rows):,} usable crops, not {data.crops:,}", "Ask for fewer")
        if data.crops is not None:
            ranked = sorted(rows, key=lambda row: _rank(images, row, recipe.finetune.seed))
            rows = sorted(ranked[: data.crops])
        kept += rows
    return images.only(kept)


def open_validation(path: Path, charset: str, recipe: Recipe) -> WordImages:
    """Open the crops that checkpoints are chosen by."""
    return _opened((path,), charset, recipe.decoder.max_label_length)


def fixed_by_stores(trial_data: dict[str, DataSet]) -> dict[str, dict[str, Any]]:
    """Return the recipe keys that word-crop stores among the data fix, by section: none where there is no store.

    Raises:
        UserError: data is missing, or of two kinds. DamagedStore: a store is damaged.
    """
    paths = [require(Path(str(data.path)), f"data {name!r}", data.made_by) for name, data in trial_data.items()]
    return fixed_settings(stores_among(paths))


def fingerprint(images: WordImages) -> str:
    """Return the SHA-256 of names and labels, in order, and of the stores that they are in."""
    stores = images.stores if isinstance(images, StoredCrops) else []
    return images.samples.digest([json.dumps(store.manifest.fingerprint(), sort_keys=True) for store in stores])


def require(path: Path, what: str, made_by: str) -> Path:
    """Return ``path``, or raise :class:`UserError` that says what is not there and how it is made."""
    if not path.exists():
        advice = f"Make it first: {made_by}" if made_by else "Paths are relative to the folder you are in"
        raise UserError(f"no {what} at {path}", advice)
    return path


@cache
def charset_named(name: str) -> Charset:
    """Return the charset of a name with what its characters become in labels."""
    return Normalization().charset(Charset.named(name))


@cache
def _opened(paths: tuple[Path, ...], charset: str, longest: int) -> WordImages:
    return open_crops(paths, charset_named(charset), Normalization(max_label_length=longest))


def _rank(images: WordImages, row: int, seed: int) -> bytes:
    sample = images.samples[row]
    return hashlib.blake2b(f"{seed}\t{sample.key}\t{sample.label}".encode(), digest_size=8).digest()
