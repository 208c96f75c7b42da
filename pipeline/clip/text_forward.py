"""Three ways to run a text tower, each with the result of transformers' own forward.

In a causal tower nothing after a token can change its state. Hence the template's tokens before the label have the
same states, keys and values in every prompt: :class:`AfterPrefix` runs them once, and every prompt runs only its own
tokens against these. A tower that looks both ways shares nothing between prompts: :class:`Whole` runs them as they are
where its mask hides padding, :class:`Filled` at the one length that it was trained on where it has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from dptr.pipeline.clip.families.base import Family


class Forward(Protocol):
    """Runs own tokens after a prefix that all prompts share.

    Attributes:
        prefix_ids: the shared tokens. prefix: their states, shape (len(prefix_ids), dim).
    """

    prefix_ids: list[int]
    prefix: torch.Tensor

    def run(self, ids: torch.Tensor) -> torch.Tensor:
        """Return final states (batch, at least own, dim) of own tokens (batch, own), then those of filling."""


class Whole:
    """Every prompt from its first token, through transformers' own forward."""

    def __init__(self, family: Family, model: Any) -> None:
        self._family, self._model = family, model
        self.prefix_ids: list[int] = []
        self.prefix = torch.zeros(0, family.text_dim(model), dtype=model.dtype, device=model.device)

    @torch.inference_mode()
    def run(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, length) -> (batch, length, width), as :class:`Forward` says."""
        return self._family.text_states(self._model, ids, torch.ones_like(ids))


class Filled(Whole):
    """Every prompt filled up to the tower's length, with nothing masked."""

    def __init__(self, family: Family, model: Any, padding: int) -> None:
        super().__init__(family, model)
        self._padding = padding

    @torch.inference_mode()
    def run(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, own) -> (batch, all, width), as :class:`Forward` says."""
        missing = self._family.most_tokens(self._model) - ids.shape[1]
        return self._family.text_states(self._model, F.pad(ids, (0, missing), value=self._padding))


class AfterPrefix:
    """Own tokens only, against the keys and values of a prefix that was run once. For causal towers built as CLIP's."""

    @torch.inference_mode()
    def __init__(self, text_model: Any, prefix_ids: list[int]) -> None:
        self._model = text_model
        self._layers = [_Layer.of(module) for module in text_model.encoder.layers]
        self.prefix_ids = prefix_ids
        self._keys_values: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(self._layers)
        states, self._keys_values = self._run(torch.tensor([prefix_ids], device=text_model.device), 0)
        self.prefix = states[0]

    @torch.inference_mode()
    def run(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, length) -> (batch, length, width), as :class:`Forward` says."""
        return self._run(ids, len(self.prefix_ids))[0]

    def _run(
        self, ids: torch.Tensor, before: int
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor] | None]]:
        own = ids.shape[1]
        positions = torch.arange(before, before + own, device=ids.device)[None]
        x = self._model.embeddings(input_ids=ids, position_ids=positions)
        mask = torch.ones(own, before + own, dtype=torch.bool, device=ids.device).tril(before)
        keys_values: list[tuple[torch.Tensor, torch.Tensor] | None] = []
        for layer, cached in zip(self._layers, self._keys_values, strict=True):
            x, key, value = layer.run(x, cached, mask)
            keys_values.append((key, value))
        return self._model.final_layer_norm(x), keys_values


@dataclass(frozen=True)
class _Layer:
    """One transformer layer: transformers' modules, with the three input projections stacked into one product."""

    module: Any
    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def of(cls, module: Any) -> _Layer:
        attention = module.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        return cls(module, torch.cat([p.weight for p in projections]), torch.cat([p.bias for p in projections]))

    def run(
        self, x: torch.Tensor, cached: tuple[torch.Tensor, torch.Tensor] | None, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run the layer on (batch, own, dim) after cached keys and values (1, heads, prefix, head_dim)."""
        attention = self.module.self_attn
        batch, own, dim = x.shape
        stacked = F.linear(self.module.layer_norm1(x), self.weight, self.bias)
        query, key, value = stacked.view(batch, own, 3, -1, attention.head_dim).permute(2, 0, 3, 1, 4)
        if cached is not None:
            key, value = (
                torch.cat([old.expand(batch, -1, -1, -1), new], dim=2)
                for old, new in zip(cached, (key, value), strict=True)
            )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attention.scale)
        x = x + attention.out_proj(mixed.transpose(1, 2).reshape(batch, own, dim))
        return x + self.module.mlp(self.module.layer_norm2(x)), key, value
