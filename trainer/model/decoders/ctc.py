"""Connectionist temporal classification: every memory token names a character or nothing, all at once.

The fastest reader and the quickest to learn where each token shows one place of the image (columns, ``fmu.kind =
"none"``): nothing has to find out where the letters are. Layers of self-attention let tokens agree on a word first.
Source: Graves et al., ICML 2006. The end's class serves as the blank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dptr.trainer.model.decoders.base import Decoder, DecoderShape, Memory, Targets
from dptr.trainer.model.layers import SelfAttentionLayer, initialize, sinusoids

#: A logit beside zeros that leaves no doubt.
_CERTAIN = 100.0


class CtcDecoder(Decoder):
    """Self-attention over the memory, then one linear layer a token."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__(shape)
        self.enter = nn.Linear(shape.memory_dim, shape.dim)
        self.layers = nn.ModuleList(
            SelfAttentionLayer(shape.dim, shape.heads, shape.feed_forward, shape.dropout) for _ in range(shape.layers)
        )
        self.norm = nn.LayerNorm(shape.dim)
        self.head = nn.Linear(shape.dim, self.classes)
        self.apply(initialize)

    def forward(self, memory: Memory) -> Tensor:
        """Return logits of every token: (batch, tokens, classes)."""
        x = self.enter(memory.tokens)
        x = x + sinusoids(torch.arange(x.shape[1], device=x.device), x.shape[2])
        for layer in self.layers:
            x = layer(x, memory.mask)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def loss(self, memory: Memory, targets: Targets) -> Tensor:
        """CTC loss, each label's divided by its length and then averaged.

        A label that needs more tokens than there are (one a character, one more between equal ones) counts as nothing.
        """
        logits = self(memory)
        tokens = torch.full((len(logits),), logits.shape[1]) if memory.padding is None else (~memory.padding).sum(1)
        return F.ctc_loss(
            logits.float().log_softmax(-1).transpose(0, 1),
            targets.outputs[:, :-1],
            tokens.to(targets.outputs.device),
            (targets.outputs != targets.padding).sum(1) - 1,
            blank=targets.end,
            zero_infinity=True,
        )

    def decode(self, memory: Memory, max_length: int | None = None) -> Tensor:
        """Read greedily: equal neighbours count once, blanks not at all; logits (batch, positions, classes)."""
        logits = self(memory).float()
        if memory.padding is not None:
            logits = logits.masked_fill(memory.padding[..., None], 0.0)
            logits[..., self.end] = logits[..., self.end].masked_fill(memory.padding, torch.finfo(logits.dtype).max)
        ids = logits.argmax(-1)
        before = F.pad(ids[:, :-1], (1, 0), value=self.end)
        kept = (ids != self.end) & (ids != before)
        # What is kept moves to the front; the rest goes to one place behind it, which is cut off.
        place = torch.where(kept, kept.cumsum(1) - 1, ids.shape[1])
        # Behind the last character nothing was asked: the end is certain.
        certain = torch.zeros_like(logits[:, :1]).expand(-1, ids.shape[1] + 1, -1).clone()
        certain[..., self.end] = _CERTAIN
        read = certain.scatter(1, place[..., None].expand_as(logits), logits)
        length = min(self.steps(max_length), ids.shape[1])
        return read[:, :length]
