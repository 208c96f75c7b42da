"""The CLIP that train.py trains, with the heads that only training needs, and its losses.

A contrastive loss alone has to learn spelling from whole words, of which few fit into a batch. So heads classify which
letter stands where: one from every column of the image encoder's patches, and one, shared by both encoders, from the
pooled vector. Two more classify which token, at which place, each text embedding is of.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from dptr.cache.errors import UserError
from dptr.cache.file_names import IMAGE_PROCESSOR_FILE, MODEL_CONFIG_FILE, TOKENIZER_FILES, WEIGHTS_FILE
from dptr.cache.progress import note
from dptr.trainer.model.decoders.base import Tensors

#: What a CLIP's folder holds besides its weights.
DESCRIPTIONS = (MODEL_CONFIG_FILE, IMAGE_PROCESSOR_FILE, *TOKENIZER_FILES)
_EMBEDDINGS = "text_model.embeddings.token_embedding.weight"
_LETTERS_A_PATCH = 4
#: As in CLIP: beyond a hundredfold, similarities make training unstable.
_MOST_LOG_SCALE = 4.6052


@dataclass(frozen=True)
class ClipBatch(Tensors):
    """Crops with their prompts, and photos without text.

    Attributes:
        images: (words + photos, 3, size, size) uint8, the words first. token_ids: (words, tokens) int64, padded with
            the end token. letters: (words, columns) int64, classes of ``letters_by_column``.
        unreadable: what was rejected and why.
    """

    images: Tensor
    token_ids: Tensor
    letters: Tensor
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.token_ids)


class ClipLearner(nn.Module):
    """transformers' ``CLIPModel`` with the heads that only training needs.

    ``mean`` and ``std``, three numbers each, normalise pixels in [0, 1]; ``letters`` are classified.
    """

    def __init__(self, clip: Any, mean: list[float], std: list[float], letters: int) -> None:
        super().__init__()
        self.clip, vision, text = clip, clip.config.vision_config, clip.config.text_config
        self.size = int(vision.image_size)
        self.side = self.size // int(vision.patch_size)
        self.columns, self.classes = self.side * _LETTERS_A_PATCH, letters + 1
        self.column_head = nn.Linear(self.side * vision.hidden_size, _LETTERS_A_PATCH * self.classes)
        self.word_head = nn.Linear(clip.config.projection_dim, self.columns * self.classes)
        self.token_head = nn.Linear(text.hidden_size, text.vocab_size)
        self.place_head = nn.Linear(text.hidden_size, text.max_position_embeddings)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 3, size, size) uint8 -> unit vectors (batch, dim), letter logits (batch, columns, classes)."""
        out = self.clip.vision_model(pixel_values=(images / 255 - self.get_buffer("mean")) / self.get_buffer("std"))
        patches = out.last_hidden_state[:, 1:].unflatten(1, (self.side, self.side))
        letters = self.column_head(patches.transpose(1, 2).flatten(2)).view(len(images), self.columns, self.classes)
        return functional.normalize(self.clip.visual_projection(out.pooler_output).float(), dim=-1), letters

    def encode_texts(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode prompts (batch, tokens) to unit vectors (batch, dim) and embeddings (batch, tokens, width)."""
        # The encoder is causal: padding stands behind a prompt's end token and cannot change it.
        out = self.clip.text_model(input_ids=token_ids)
        return functional.normalize(self.clip.text_projection(out.pooler_output).float(), dim=-1), out.last_hidden_state

    def loss(self, batch: ClipBatch, letters_weight: float, embeddings_weight: float) -> Tensor:
        """Contrastive loss of both directions plus those of letters and of text embeddings; photos are negatives."""
        words = len(batch.token_ids)
        images, by_column = self.encode_images(batch.images)
        texts, embeddings = self.encode_texts(batch.token_ids)
        scale = self.clip.logit_scale.clamp(max=_MOST_LOG_SCALE).exp()
        matching = contrastive_loss(texts @ images.T * scale, batch.token_ids)
        logits = [by_column[:words], self._letters(images[:words]), self._letters(texts)]
        wanted = batch.letters.flatten()
        by_patch, of_images, of_texts = (functional.cross_entropy(a.float().flatten(0, 1), wanted) for a in logits)
        letters = by_patch + (of_images + of_texts) / 2
        return (
            matching + letters_weight * letters + embeddings_weight * self._embeddings_loss(embeddings, batch.token_ids)
        )

    def _embeddings_loss(self, embeddings: Tensor, token_ids: Tensor) -> Tensor:
        """Cross-entropy of each embedding's token and position, up to the first end token."""
        is_end = token_ids == self.clip.config.text_config.eos_token_id
        real = is_end.cumsum(1) - is_end.long() == 0
        positions = torch.arange(token_ids.shape[1], device=embeddings.device).expand_as(token_ids)
        tokens = functional.cross_entropy(self.token_head(embeddings[real]).float(), token_ids[real])
        return tokens + functional.cross_entropy(self.place_head(embeddings[real]).float(), positions[real])

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
    twins = (token_ids[:, None] == token_ids[None]).all(-1).fill_diagonal_(False)
    scores = similarities.float()
    scores = scores.masked_fill(functional.pad(twins, (0, scores.shape[1] - words)), -torch.inf)
    return (functional.cross_entropy(scores, right) + functional.cross_entropy(scores[:, :words].T, right)) / 2


def open_learner(folder: Path, letters: int) -> tuple[ClipLearner, Any]:
    """Return a learner with new weights of the shape that ``folder`` describes, and the tokenizer there."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    missing = [name for name in DESCRIPTIONS if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} has no {missing[0]}", "Give a CLIP's folder as transformers saves it, or `tiny`")
    config: Any = CLIPConfig.from_pretrained(folder)
    pixels = json.loads((folder / IMAGE_PROCESSOR_FILE).read_text(encoding="utf-8"))
    side = config.vision_config.image_size
    if pixels.get("do_center_crop") or pixels.get("size") != {"height": side, "width": side}:
        raise UserError(
            f"{folder} cuts images to a square, and words lose letters",
            f'In {IMAGE_PROCESSOR_FILE}: "do_center_crop": false, "size": {{"height": {side}, "width": {side}}}',
        )
    # On short sequences the fused kernel's backward pass takes as long as all else together.
    config._attn_implementation = "eager"
    weights: Any = CLIPModel
    learner = ClipLearner(weights(config), pixels["image_mean"], pixels["image_std"], letters)
    return learner, AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def take_weights(clip: nn.Module, vocabulary: dict[str, int], folder: Path) -> None:
    """Copy the weights of equal name and shape from the CLIP in ``folder``, and the embeddings of shared tokens."""
    theirs = load_file(folder / WEIGHTS_FILE)
    known = json.loads((folder / TOKENIZER_FILES[0]).read_text(encoding="utf-8"))["model"]["vocab"]
    ours = clip.state_dict()
    fitting = [name for name in ours if name in theirs and theirs[name].shape == ours[name].shape]
    fitting = [name for name in fitting if name != _EMBEDDINGS]
    if any(name.startswith("vision_model.") for name in set(ours) - set(fitting)):
        raise UserError(f"the image encoder of {folder} is of another shape", "Start from a CLIP of the same shape")
    for name in fitting:
        ours[name].copy_(theirs[name])
    shared = [token for token in vocabulary if token in known]
    if shared and theirs[_EMBEDDINGS].shape[1] == ours[_EMBEDDINGS].shape[1]:
        rows = [vocabulary[token] for token in shared]
        ours[_EMBEDDINGS][rows] = theirs[_EMBEDDINGS][[known[token] for token in shared]].to(ours[_EMBEDDINGS])
    note(f"from {folder.name}: {len(fitting)} of {len(ours)} weights, {len(shared):,} of {len(vocabulary):,} tokens")
