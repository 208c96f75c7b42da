"""Connectionist temporal classification: every memory token names a character or nothing, all at once.

The quickest to learn where each token shows one place of the image (columns, ``fmu.kind = "none"``), as tokens are in
reading order already. Self-attention over the tokens comes first: CTC itself scores each token independently.
Source: Graves et al., ICML 2006. The end's class serves as the blank.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dptr.trainer.model.decoders.base import Decoder, DecoderShape, Memory, Targets
from dptr.trainer.model.layers import SelfAttentionLayer, initialize, sinusoids

#: A logit whose softmax beside zeros is 1 in float32.
_CERTAIN = 100.0


class CtcDecoder(Decoder):
    """Self-attention over the memory, then one linear layer a token."""

    positions_memory = True
    reads_columns = True

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
        return ctc_loss(logits, targets, tokens.to(targets.outputs.device))

    def decode(self, memory: Memory, max_length: int | None = None) -> Tensor:
        """Read greedily; logits (batch, positions, classes)."""
        read = self.greedy(self(memory).float(), memory.padding)
        return read[:, : min(self.steps(max_length), memory.tokens.shape[1])]

    def greedy(self, logits: Tensor, padding: Tensor | None = None) -> Tensor:
        """Join logits of tokens (batch, tokens, classes): equal neighbours count once, blanks not at all.

        :meth:`joined` gives the same in numbers, sooner; this one is for graphs.

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
        count = kept.sum(1, keepdim=True)
        positions = min(self.steps(None), ids.shape[1])
        # An exported graph has as many positions whatever is read; else none is filled that no label reaches.
        if not torch.compiler.is_exporting():
            positions = min(positions, int(count.max()) + 1)
        # What is kept moves to the front; the rest goes to one position behind it, which is cut off.
        position = torch.where(kept, kept.cumsum(1) - 1, ids.shape[1])
        tokens = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        source = F.pad(torch.zeros_like(ids), (0, 1)).scatter(1, position, tokens)[:, :positions]
        read = logits.gather(1, source[..., None].expand(-1, -1, self.classes))
        return self._with_ends(read, count, self._doubtful(logits, kept))

    def joined(self, log_probabilities: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Join log-probabilities of one image's tokens (tokens, classes) as :meth:`greedy` does.

        Returns:
            ids of the characters and the end behind them, and their probabilities, both (positions,).
        """
        ids = log_probabilities.argmax(1)
        certain = log_probabilities.max(1)
        kept = (ids != self.end) & (ids != np.concatenate([[self.end], ids[:-1]]))
        # As in _doubtful: the tokens that name no character are the end's probability.
        end = np.exp(certain[~kept].sum()).clip(2 / self.classes, 1 - 1e-6)
        positions = min(self.steps(None), len(ids))
        return (
            np.concatenate([ids[kept], [self.end]])[:positions],
            np.concatenate([np.exp(certain[kept]), [end]])[:positions].astype(np.float32),
        )

    def _with_ends(self, read: Tensor, count: Tensor, doubtful: Tensor) -> Tensor:
        """Put the end behind the characters of logits (batch, positions, classes), of which ``count`` (batch, 1) count.

        The end is ``doubtful``, (batch, 1, classes), at the first position behind them, and certain behind that.
        """
        places = torch.arange(read.shape[1], device=read.device)
        certain = _CERTAIN * self._is_end(read.device).to(read.dtype)
        read = torch.where((places > count)[..., None], certain, read)
        return torch.where((places == count)[..., None], doubtful, read)

    def _doubtful(self, logits: Tensor, kept: Tensor) -> Tensor:
        """Return logits (batch, 1, classes) of the end at the first position behind the characters.

        It is as probable as all the tokens that name none of them, so that a reading's confidence is the probability of
        its alignment.
        """
        unnamed = logits.log_softmax(-1).amax(-1).masked_fill(kept, 0.0).sum(1)
        # At least 2 / classes: the end stays the likeliest class of its position, however doubtful the alignment.
        chance = unnamed.exp().clamp(2 / self.classes, 1 - 1e-6)[:, None, None]
        return torch.where(self._is_end(logits.device), chance.log(), ((1 - chance) / (self.classes - 1)).log())

    def _is_end(self, device: torch.device) -> Tensor:
        return torch.arange(self.classes, device=device) == self.end


def ctc_loss(logits: Tensor, targets: Targets, tokens: Tensor) -> Tensor:
    """CTC loss of logits (batch, tokens, classes), each label's divided by its length and then averaged; a scalar.

    A label's alignments name its own classes and the blank alone. So torch's loss is given these few, and thousands of
    classes cost no more than their softmax.

    Args:
        logits: of the tokens. targets: the end's class is the blank. tokens: how many of each row count, (batch,).
    """
    labels = targets.outputs[:, :-1]
    labels = labels.masked_fill(labels == targets.padding, targets.end)
    lengths = (targets.outputs != targets.padding).sum(1) - 1
    own = F.pad(labels, (1, 0), value=targets.end)[:, None].expand(-1, logits.shape[1], -1)
    log_probabilities = logits.float().log_softmax(2).gather(2, own)
    # Class 0 is the blank, class n the label's n-th; where one comes again, it goes by its first place.
    places = (labels[:, :, None] == labels[:, None, :]).int().argmax(2) + 1
    losses = F.ctc_loss(
        log_probabilities.transpose(0, 1), places, tokens, lengths, reduction="none", zero_infinity=True
    )
    # The gradient that torch gives has the classes' own probabilities in it, which is right for all classes together
    # behind a softmax alone. They are taken out again, where there is a loss; its value stays.
    inside = torch.arange(logits.shape[1], device=logits.device) < tokens[:, None]
    added = (log_probabilities.exp().sum(2) * inside).sum(1) * (losses.detach() > 0)
    return ((losses - added + added.detach()) / lengths.clamp(min=1)).mean()
