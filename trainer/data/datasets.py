"""Labelled crops and prompt stores as torch data sets, for other training loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from dptr.cache.command_line import checked
from dptr.cache.crops.dataset import WordImages, preprocess
from dptr.cache.errors import UserError
from dptr.cache.options import Paths, paths_of
from dptr.cache.remote import at_hand
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization

#: Transforms a crop, an RGB picture of any size.
Transform = Callable[[Image.Image], Any]


class Prompt(TypedDict):
    """A prompt: its label, its own token embeddings (tokens, dim) and its pooled vector (pooled_dim,), float32."""

    label: str
    tokens: Tensor
    pooled: Tensor


class PromptBatch(TypedDict):
    """Prompts with their tokens padded.

    Attributes:
        labels: one a prompt. tokens: (batch, longest, dim), float32, 0 where padded.
        padding: (batch, longest), bool, True where padded. pooled: (batch, pooled_dim), float32.
    """

    labels: list[str]
    tokens: Tensor
    padding: Tensor
    pooled: Tensor


class CropDataset(Dataset[tuple[Any, str]]):
    """Labelled crops in any accepted form, as pairs of image and label; fits ``torch.utils.data.DataLoader``.

    Args:
        data: one or several folders with ``labels.tsv``, LMDBs, Parquet or tar files.
        charset: normalises labels and leaves out crops that it cannot spell; None: labels as written, all crops.
        height, width: of images, in pixels; unused with a transform.
        transform: makes an image of a PIL picture; None: a tensor (3, height, width), float32 from 0 to 1.

    Raises:
        UserError: there are no labelled crops; reading one: its picture cannot be decoded.
    """

    @checked
    def __init__(
        self,
        data: Paths,
        *,
        charset: str | Charset | None = None,
        height: int = 32,
        width: int = 128,
        transform: Transform | None = None,
    ) -> None:
        paths = [at_hand(path) for path in paths_of(data)]
        if not paths or height < 1 or width < 1:
            raise UserError(f"{len(paths)} data sets, images {height} x {width}", "Give labelled crops, and a size")
        if charset is None:
            self.images = WordImages.open_as_written(paths)
        else:
            known = charset if isinstance(charset, Charset) else Charset.named(charset)
            self.images = WordImages.open(paths, known, Normalization.of(known))
        self._size, self._transform = (height, width), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, str]:
        row = _row(index, len(self))
        picture = self.images.image(row)
        if self._transform is None:
            image = torch.from_numpy(preprocess(picture, *self._size)).float() / 255
        else:
            image = self._transform(picture)
        return image, self.images.samples[row].label


class PromptDataset(Dataset[Prompt]):
    """The prompts of a store with their embeddings, memory-mapped; give a ``DataLoader`` :meth:`collate`.

    Args:
        store: a prompt store or its folder.

    Raises:
        DptrError: the folder holds none, or it is damaged.
    """

    @checked
    def __init__(self, store: PromptStore | str | Path) -> None:
        self.store = store if isinstance(store, PromptStore) else PromptStore(at_hand(Path(store)))

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Prompt:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Prompt]:
        """Return several prompts, read at once."""
        rows = np.array([_row(index, len(self)) for index in indices], np.int64)
        found = self.store.embeddings(rows)
        tokens = torch.split(torch.from_numpy(found.tokens), found.lengths.tolist())
        pooled = torch.from_numpy(found.pooled)
        return [
            {"label": label, "tokens": own, "pooled": vector}
            for label, own, vector in zip(self.store.labels_of(rows), tokens, pooled, strict=True)
        ]

    @staticmethod
    def collate(prompts: Sequence[Prompt]) -> PromptBatch:
        """Return prompts as one batch, padded to the longest."""
        lengths = torch.tensor([len(prompt["tokens"]) for prompt in prompts])
        tokens = pad_sequence([prompt["tokens"] for prompt in prompts], batch_first=True)
        return {
            "labels": [prompt["label"] for prompt in prompts],
            "tokens": tokens,
            "padding": torch.arange(tokens.shape[1]) >= lengths[:, None],
            "pooled": torch.stack([prompt["pooled"] for prompt in prompts]),
        }


def _row(index: int, rows: int) -> int:
    """Return the row that an index means; one below 0 counts from the end.

    Raises:
        IndexError: there is no such row; iteration over a sequence ends so.
    """
    if not -rows <= index < rows:
        raise IndexError(f"row {index} of {rows}")
    return int(index) % rows
