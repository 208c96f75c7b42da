"""A small CLIP as it learns: images and prompts of the same word are drawn together, all others pushed apart.

A contrastive loss alone has to learn spelling from whole words, of which few fit into a batch. So both towers are
also asked, in training only, which letter stands where: the image tower for every column of its patches, and both from
the one vector that they are compared by. The same question of both makes them answer in the same terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dptr.trainer.letter_places import CLASSES

#: Letters asked for within the width of one patch.
_LETTERS_A_PATCH = 4
#: As in CLIP: beyond a hundredfold, similarities make training unstable.
_MOST_LOG_SCALE = 4.6052


@dataclass(frozen=True)
class ClipBatch:
    """Word images with their prompts, and photos without text.

    Attributes:
        images: (words + photos, 3, size, size) uint8, the words first.
        token_ids: (words, tokens) int64, padded with the end token.
        letters: (words, columns) int64, classes of :mod:`dptr.trainer.letter_places`.
        unreadable: what had to be left out and why.
    """

    images: Tensor
    token_ids: Tensor
    letters: Tensor
    unreadable: tuple[str, ...] = ()

    def to(self, device: torch.device) -> ClipBatch:
        """Copy the tensors to a device."""
        tensors = (self.images.to(device), self.token_ids.to(device), self.letters.to(device))
        return ClipBatch(*tensors, self.unreadable)


class ClipLearner(nn.Module):
    """transformers' ``CLIPModel`` with the heads that only training needs.

    Args:
        clip: a ``CLIPModel``.
        mean, std: three numbers each, with which pixels in [0, 1] are normalised.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Any, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.clip = clip
        vision = clip.config.vision_config
        self.size = int(vision.image_size)
        self.side = self.size // int(vision.patch_size)
        self.columns = self.side * _LETTERS_A_PATCH
        self.column_head = nn.Linear(self.side * vision.hidden_size, _LETTERS_A_PATCH * CLASSES)
        self.word_head = nn.Linear(clip.config.projection_dim, self.columns * CLASSES)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode pixels.

        Args:
            images: (batch, 3, size, size) uint8.

        Returns:
            Vectors of length one in the joint space (batch, dim), and letter logits (batch, columns, classes).
        """
        out = self.clip.vision_model(pixel_values=(images / 255 - self.mean) / self.std)
        patches = out.last_hidden_state[:, 1:].unflatten(1, (self.side, self.side))
        by_column = patches.transpose(1, 2).flatten(2)
        letters = self.column_head(by_column).view(len(images), self.columns, CLASSES)
        return _unit(self.clip.visual_projection(out.pooler_output)), letters

    def encode_texts(self, token_ids: Tensor) -> Tensor:
        """Encode prompts (batch, tokens), padded with the end token, as vectors of length one (batch, dim)."""
        # The tower is causal: what pads a prompt stands behind its end token and cannot change it.
        return _unit(self.clip.text_projection(self.clip.text_model(input_ids=token_ids).pooler_output))

    def loss(self, batch: ClipBatch, letters_weight: float) -> Tensor:
        """Contrastive loss of both directions, plus that of the letters; photos only ever count as wrong images."""
        words = len(batch.token_ids)
        images, by_column = self.encode_images(batch.images)
        texts = self.encode_texts(batch.token_ids)
        scale = self.clip.logit_scale.clamp(max=_MOST_LOG_SCALE).exp()
        matching = contrastive_loss(texts @ images.T * scale, batch.token_ids)
        answers = [by_column[:words], self._letters(images[:words]), self._letters(texts)]
        letters = [
            functional.cross_entropy(answer.float().flatten(0, 1), batch.letters.flatten()) for answer in answers
        ]
        return matching + letters_weight * (letters[0] + 0.5 * letters[1] + 0.5 * letters[2])

    def _letters(self, vectors: Tensor) -> Tensor:
        scaled = vectors * vectors.shape[-1] ** 0.5
        return torch.as_tensor(self.word_head(scaled)).view(len(vectors), self.columns, CLASSES)


def contrastive_loss(similarities: Tensor, token_ids: Tensor) -> Tensor:
    """Cross-entropy of texts against all images and of word images against all texts, as CLIP has it.

    Args:
        similarities: (words, words + photos), scaled; the right pairs stand on the diagonal.
        token_ids: (words, tokens). A word that is in the batch twice is no wrong answer to itself.
    """
    words = len(similarities)
    right = torch.arange(words, device=similarities.device)
    twins = (token_ids[:, None] == token_ids[None]).all(-1)
    twins[right, right] = False
    scores = similarities.float()
    scores = scores.masked_fill(functional.pad(twins, (0, scores.shape[1] - words)), -torch.inf)
    to_image = functional.cross_entropy(scores, right)
    to_text = functional.cross_entropy(scores[:, :words].T, right)
    return (to_image + to_text) / 2


def _unit(vectors: Tensor) -> Tensor:
    return functional.normalize(vectors.float(), dim=-1)
