"""Word images with their prompts, and rectangles of photos without text: what a CLIP is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dptr.cache.errors import UserError
from dptr.cache.pictures import photo_thumbnail
from dptr.cache.row_set import EveryRow
from dptr.cache.word_images.dataset import UnreadableImage, WordImages, preprocess
from dptr.trainer.data.batch_order import BatchOrder
from dptr.trainer.data.letter_positions import letters_by_column
from dptr.trainer.model.clip_learner import ClipBatch
from dptr.trainer.training.settings import ClipSettings

#: Photos are shown at the size of a crop: more pixels would only cost time and memory.
_PHOTO_SIDE = 480
_LEAST_SHARE = 0.2


class Prompts:
    """Labels to token ids: (labels, tokens) int64, padded with the end token; picklable, for workers."""

    def __init__(self, tokenizer: Any, prompt: Callable[[str], str]) -> None:
        self._tokenizer = tokenizer
        self._prompt = prompt

    def __call__(self, labels: Sequence[str]) -> Tensor:
        """Tokenize the prompts of ``labels``."""
        rows = self._tokenizer([self._prompt(label) for label in labels])["input_ids"]
        longest = max(map(len, rows))
        end = self._tokenizer.eos_token_id
        return torch.tensor([row + [end] * (longest - len(row)) for row in rows])


class ClipBatches:
    """Batch number -> :class:`ClipBatch`; a pure function of the recipe's seed and the number."""

    def __init__(
        self,
        images: WordImages,
        photos: Sequence[Path],
        prompts: Prompts,
        settings: ClipSettings,
        size: int,
        columns: int,
        alphabet: str,
    ) -> None:
        self._order = BatchOrder(EveryRow(len(images)), None, settings.batch_size, settings.seed)
        self._images = images
        self._photos = list(photos)
        self._prompts = prompts
        self._settings = settings
        self._size = size
        self._columns = columns
        self._alphabet = alphabet

    def __call__(self, number: int) -> ClipBatch:
        """Return batch ``number``, counted from 0 through all epochs."""
        pixels: list[NDArray[np.uint8]] = []
        labels: list[str] = []
        unreadable: list[str] = []
        for row in self._order.rows_of(number).tolist():
            try:
                pixels.append(preprocess(self._images.image(row), self._size, self._size))
            except UnreadableImage as error:
                unreadable.append(str(error))
                continue
            labels.append(self._images.samples[row].label)
        if not labels:
            raise UserError(f"batch {number} has no readable image: {unreadable[0]}", "Check the data")
        rng = np.random.default_rng((self._settings.seed, 6, number))
        pixels += [self._photo(rng) for _ in range(self._settings.photos if self._photos else 0)]
        letters = np.stack([letters_by_column(label, self._columns, self._alphabet) for label in labels])
        return ClipBatch(
            torch.from_numpy(np.stack(pixels)), self._prompts(labels), torch.from_numpy(letters), tuple(unreadable)
        )

    def _photo(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Draw a rectangle of a photo, of any size and shape."""
        photo = photo_thumbnail(self._photos[int(rng.integers(len(self._photos)))], _PHOTO_SIDE)
        width, height = (np.array(photo.size) * rng.uniform(_LEAST_SHARE, 1, 2)).tolist()
        left, top = (rng.random(2) * (photo.width - width, photo.height - height)).tolist()
        box = (left, top, left + width, top + height)
        cut = photo.resize((self._size, self._size), Image.Resampling.BICUBIC, box)
        if rng.random() < 0.5:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return preprocess(cut, self._size, self._size)
