"""A small CLIP in training: a contrastive loss between images and prompts, and auxiliary losses on letters.

A contrastive loss alone has to learn spelling from whole words, of which few fit into a batch. So heads that only
training has classify which letter stands where: one from every column of the image tower's patches, and one, shared by
both towers, from the pooled vector. Sharing that head makes both vectors encode letters alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dptr.trainer.model.decoders.base import sent

#: Letters classified within the width of one patch.
_LETTERS_A_PATCH = 4
#: As in CLIP: beyond a hundredfold, similarities make training unstable.
_MOST_LOG_SCALE = 4.6052


@dataclass(frozen=True)
class ClipBatch:
    """Word images with their prompts, and photos without text.

    Attributes:
        images: (words + photos, 3, size, size) uint8, the words first.
        token_ids: (words, tokens) int64, padded with the end token.
        letters: (words, columns) int64, classes of :mod:`dptr.trainer.data.letter_positions`.
        unreadable: what had to be left out and why.
    """

    images: Tensor
    token_ids: Tensor
    letters: Tensor
    unreadable: tuple[str, ...] = ()

    def to(self, device: torch.device) -> ClipBatch:
        """Copy the tensors to a device."""
        return replace(
            self,
            images=sent(self.images, device),
            token_ids=sent(self.token_ids, device),
            letters=sent(self.letters, device),
        )

    def pin_memory(self) -> ClipBatch:
        """Return a copy from which a GPU takes it while it computes."""
        return replace(
            self,
            images=self.images.pin_memory(),
            token_ids=self.token_ids.pin_memory(),
            letters=self.letters.pin_memory(),
        )


class ClipLearner(nn.Module):
    """transformers' ``CLIPModel`` with the heads that only training needs.

    Args:
        clip: a ``CLIPModel``.
        mean, std: three numbers each, kept as (3, 1, 1), with which pixels in [0, 1] are normalised.
        letters: how many letters to classify, besides any other character.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Any, mean: list[float], std: list[float], letters: int) -> None:
        super().__init__()
        self.clip = clip
        vision = clip.config.vision_config
        self.size = int(vision.image_size)
        self.side = self.size // int(vision.patch_size)
        self.columns = self.side * _LETTERS_A_PATCH
        self.classes = letters + 1
        self.column_head = nn.Linear(self.side * vision.hidden_size, _LETTERS_A_PATCH * self.classes)
        self.word_head = nn.Linear(clip.config.projection_dim, self.columns * self.classes)
        text = clip.config.text_config
        self.token_head = nn.Linear(text.hidden_size, text.vocab_size)
        self.place_head = nn.Linear(text.hidden_size, text.max_position_embeddings)
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
        letters = self.column_head(by_column).view(len(images), self.columns, self.classes)
        return _unit(self.clip.visual_projection(out.pooler_output)), letters

    def encode_texts(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode prompts (batch, tokens), padded with the end token.

        Returns:
            Vectors of length one in the joint space (batch, dim), and the states (batch, tokens, width).
        """
        # The tower is causal: what pads a prompt stands behind its end token and cannot change it.
        out = self.clip.text_model(input_ids=token_ids)
        return _unit(self.clip.text_projection(out.pooler_output)), out.last_hidden_state

    def loss(self, batch: ClipBatch, letters_weight: float, states_weight: float) -> Tensor:
        """Contrastive loss of both directions, plus those of the letters and of the text states; a scalar.

        Photos are negatives of every prompt and have none of their own.
        """
        words = len(batch.token_ids)
        images, by_column = self.encode_images(batch.images)
        texts, states = self.encode_texts(batch.token_ids)
        scale = self.clip.logit_scale.clamp(max=_MOST_LOG_SCALE).exp()
        matching = contrastive_loss(texts @ images.T * scale, batch.token_ids)
        answers = [by_column[:words], self._letters(images[:words]), self._letters(texts)]
        asked = batch.letters.flatten()
        by_patch, of_images, of_texts = (functional.cross_entropy(a.float().flatten(0, 1), asked) for a in answers)
        letters = by_patch + (of_images + of_texts) / 2
        return matching + letters_weight * letters + states_weight * self._states_loss(states, batch.token_ids)

    def _states_loss(self, states: Tensor, token_ids: Tensor) -> Tensor:
        """Cross-entropy of each state's token and position, up to the first end token."""
        end = self.clip.config.text_config.eos_token_id
        real = (token_ids == end).cumsum(1) - (token_ids == end).long() == 0
        positions = torch.arange(token_ids.shape[1], device=states.device).expand_as(token_ids)
        told = states[real]
        tokens = functional.cross_entropy(self.token_head(told).float(), token_ids[real])
        return tokens + functional.cross_entropy(self.place_head(told).float(), positions[real])

    def _letters(self, vectors: Tensor) -> Tensor:
        scaled = vectors * vectors.shape[-1] ** 0.5
        return torch.as_tensor(self.word_head(scaled)).view(len(vectors), self.columns, self.classes)


def contrastive_loss(similarities: Tensor, token_ids: Tensor) -> Tensor:
    """Cross-entropy of texts against all images and of word images against all texts, as CLIP has it.

    Args:
        similarities: (words, words + photos), scaled; the right pairs stand on the diagonal.
        token_ids: (words, tokens). A word that is in the batch twice is no negative of itself.
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
