"""The plain autoregressive transformer: each character from those before it and from the memory.

One order and one stream, so its training step is the cheapest; it cannot refine what it has read. Source:
NRTR ("A No-Recurrence Sequence-to-Sequence Model For Scene Text Recognition", ICDAR 2019), the decoder; norms stand
before the blocks here, which trains without a long warm-up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dptr.trainer.model.decoders.autoregressive import AutoregressiveDecoder, Step
from dptr.trainer.model.decoders.base import DecoderShape, Memory, Targets
from dptr.trainer.model.layers import DecoderLayer, KeysValues, extend


class NrtrDecoder(AutoregressiveDecoder[DecoderLayer]):
    """Causal self-attention over the characters, cross-attention to the memory."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(shape, DecoderLayer)

    def loss(self, memory: Memory, targets: Targets) -> Tensor:
        """Cross-entropy of every character and of the end, a scalar."""
        length = targets.inputs.shape[1]
        # Padding stands behind the label, where the causal mask keeps every counted position from attending.
        causal = torch.ones(length, length, dtype=torch.bool, device=targets.inputs.device).tril()
        x = self.dropout(self.embed(targets.inputs))
        for layer in self.stack:
            normed = layer.norm_content(x)
            x = layer.self_attend(x, normed, layer.self_attention.keys_values(normed), causal)
            x = layer.cross_attend(x, layer.cross_attention.keys_values(memory.tokens), memory.mask)
        logits = self.logits(x).flatten(0, 1).float()
        return F.cross_entropy(logits, targets.outputs.flatten(), ignore_index=targets.padding)

    def prediction(self, memory: Memory) -> Step:
        """Keep keys and values of the memory and of every character read so far."""
        memories = [layer.cross_attention.keys_values(memory.tokens) for layer in self.stack]
        caches: list[KeysValues | None] = [None] * len(self.layers)

        def step(ids: Tensor, position: int) -> Tensor:
            x = self.embed(ids, position)
            for depth, layer in enumerate(self.stack):
                normed = layer.norm_content(x)
                cache = extend(caches[depth], layer.self_attention.keys_values(normed))
                caches[depth] = cache
                x = layer.self_attend(x, normed, cache, None)
                x = layer.cross_attend(x, memories[depth], memory.mask)
            return self.logits(x)

        return step
