"""Connectionist temporal classification: every memory token names a character or nothing, all at once.

The quickest to learn where each token shows one place of the image (columns, ``fmu.kind = "none"``), as tokens are in
reading order already. Self-attention over the tokens comes first: CTC itself scores each token independently.
Source: Graves et al., ICML 2006. The end's class serves as the blank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dptr.trainer.model.decoders.base import Decoder, DecoderShape, Memory, Targets
from dptr.trainer.model.layers import SelfAttentionLayer, initialize, sinusoids

#: A logit whose softmax beside zeros is 1 in float32.
_CERTAIN = 100.0


class CtcDecoder(Decoder):
    """Self-attention over the memory, then one linear layer a token."""

    positions_memory = True

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
        """Read greedily; logits (batch, positions, classes)."""
        read = self.greedy(self(memory).float(), memory.padding)
        return read[:, : min(self.steps(max_length), memory.tokens.shape[1])]

    def greedy(self, logits: Tensor, padding: Tensor | None = None) -> Tensor:
        """Join logits of tokens (batch, tokens, classes): equal neighbours count once, blanks not at all.

        Returns:
            logits of characters and the end, (batch, positions, classes); positions: those of the longest label,
            or as many as tokens.
        """
        if padding is not None:
            logits = logits.masked_fill(padding[..., None], 0.0)
            logits[..., self.end] = logits[..., self.end].masked_fill(padding, torch.finfo(logits.dtype).max)
        ids = logits.argmax(-1)
        before = F.pad(ids[:, :-1], (1, 0), value=self.end)
        kept = (ids != self.end) & (ids != before)
        # What is kept moves to the front; the rest goes to one position behind it, which is cut off.
        position = torch.where(kept, kept.cumsum(1) - 1, ids.shape[1])
        ends = self._ends(logits, kept)
        read = ends.scatter(1, position[..., None].expand_as(logits), logits)
        return read[:, : min(self.steps(None), ids.shape[1])]

    def _ends(self, logits: Tensor, kept: Tensor) -> Tensor:
        """Return logits (batch, tokens + 1, classes) of the end at every position.

        At the first position behind the characters the end is as probable as all the tokens that name none of them, so
        that a reading's confidence is the probability of its alignment; behind that the end is certain.
        """
        certain = torch.zeros_like(logits[:, :1]).expand(-1, logits.shape[1] + 1, -1).clone()
        certain[..., self.end] = _CERTAIN
        unnamed = logits.log_softmax(-1).amax(-1).masked_fill(kept, 0.0).sum(1)
        # At least 2 / classes: the end stays the likeliest class of its position, however doubtful the alignment.
        chance = unnamed.exp().clamp(2 / self.classes, 1 - 1e-6)[:, None, None]
        is_end = torch.arange(self.classes, device=logits.device) == self.end
        doubtful = torch.where(is_end, chance.log(), ((1 - chance) / (self.classes - 1)).log())
        first = torch.arange(certain.shape[1], device=logits.device) == kept.sum(1, keepdim=True)
        return torch.where(first[..., None], doubtful, certain)
