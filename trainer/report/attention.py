"""Attention over the image: of the Feature Merge Unit's queries, and of the decoder while it reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from dptr.cache.crops.dataset import preprocess
from dptr.trainer.model.decoders.decoder_layer import DecoderLayer
from dptr.trainer.model.fmu import FeatureMergeUnit
from dptr.trainer.model.layers import Attention
from dptr.trainer.model.reading import width_for
from dptr.trainer.model.recognizer import Recognizer

#: Pixels of a strip for each column of the image.
_COLUMN = 5


@torch.inference_mode()
def attention_maps(recognizer: Recognizer, image: Image.Image) -> tuple[Tensor | None, Tensor | None]:
    """Read one image and return attention weights, each None where the recogniser has no such part.

    Returns:
        Of the Feature Merge Unit (queries, columns), and of the decoder's last layer, reading from left to right before
        any refinement, (positions, columns): weights averaged over heads, summed over rows of the image, each line's
        sum is one. Columns are those of the encoder's grid of tokens.
    """
    height = recognizer.image_size[0]
    pixels = preprocess(image, height, width_for(image, height, recognizer.encoder.widths))
    tokens: list[Tensor] = []
    queries: list[Tensor] = []
    keys: list[Tensor] = []

    def note_query(_: Any, __: Any, projected: Tensor) -> None:
        if len(keys) == 1:  # refinement makes the keys anew
            queries.append(projected)

    cross = _last_cross_attention(recognizer)
    hooks: list[RemovableHandle] = [recognizer.fmu.register_forward_pre_hook(lambda _, given: tokens.append(given[0]))]
    if cross is not None:
        hooks.append(cross.key_value.register_forward_hook(lambda _, __, made: keys.append(made)))
        hooks.append(cross.query.register_forward_hook(note_query))
    try:
        recognizer.decoder.decode(recognizer.memory(torch.from_numpy(pixels)[None]))
    finally:
        for hook in hooks:
            hook.remove()
    rows = recognizer.encoder.grid[0]
    merged = recognizer.fmu.attention_map(tokens[0])[0] if isinstance(recognizer.fmu, FeatureMergeUnit) else None
    read = _weights(cross, torch.cat(queries, 1), keys[0]) if cross is not None and queries else None
    if read is not None and merged is not None:
        read = read @ merged
    found = (merged, read)
    merged, read = (None if weights is None else weights.view(len(weights), rows, -1).sum(1) for weights in found)
    return merged, read


def strip(columns: Tensor, line: int) -> Image.Image:
    """Draw a line of ``line`` pixels for each row of (rows, columns), scaled to its own maximum: darker is more."""
    shares = (columns / columns.amax(1, keepdim=True).clamp(min=1e-9)).float().numpy()
    shape = (columns.shape[1] * _COLUMN, len(columns) * line)
    return Image.fromarray(np.uint8(255 - 255 * shares)).resize(shape, Image.Resampling.NEAREST)


def _last_cross_attention(recognizer: Recognizer) -> Attention | None:
    layers = getattr(recognizer.decoder, "layers", None)
    last = layers[-1] if layers is not None and len(layers) else None
    return last.cross_attention if isinstance(last, DecoderLayer) else None


def _weights(cross: Attention, queries: Tensor, keys_values: Tensor) -> Tensor:
    """Attention of queries (1, positions, dim) over keys and values (1, tokens, 2 * dim): (positions, tokens)."""
    keys = keys_values.chunk(2, dim=-1)[0]
    apart = [x[0].view(x.shape[1], cross.heads, -1).transpose(0, 1) for x in (queries, keys)]
    weights = (apart[0] @ apart[1].transpose(-1, -2) * apart[0].shape[-1] ** -0.5).softmax(-1)
    averaged: Tensor = weights.mean(0)
    return averaged
