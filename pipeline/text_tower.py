"""CLIP's text side, driven so that what all prompts share is computed once.

The tower is causal: nothing after a token can change its state. Hence the template's tokens before the label have the
same states, keys and values in every prompt; they run once, and every prompt runs only its own tokens against these.
Prompts of equal length form a batch, so nothing is padded. The result is that of transformers' own forward
(it runs on the same weights, and :meth:`TextTower.check` compares the two on real prompts); only the work differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dptr.cache.errors import DptrError, UserError
from dptr.cache.shards import States
from dptr.pipeline.clip import Clip
from dptr.pipeline.templates import Template

StatesKind = Literal["hidden", "projected"]
Context = Literal["content", "full"]
#: Largest difference allowed between this tower and transformers' forward.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.5}


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
        self, x: torch.Tensor, keys: torch.Tensor | None, values: torch.Tensor | None, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run the layer on (batch, own, dim) after cached keys and values (1, heads, prefix, head_dim)."""
        attention = self.module.self_attn
        batch, own, dim = x.shape
        stacked = F.linear(self.module.layer_norm1(x), self.weight, self.bias)
        query, key, value = stacked.view(batch, own, 3, -1, attention.head_dim).permute(2, 0, 3, 1, 4)
        if keys is not None and values is not None:
            key = torch.cat([keys.expand(batch, -1, -1, -1), key], dim=2)
            value = torch.cat([values.expand(batch, -1, -1, -1), value], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attention.scale)
        x = x + attention.out_proj(mixed.transpose(1, 2).reshape(batch, own, dim))
        return x + self.module.mlp(self.module.layer_norm2(x)), key, value


class TextTower:
    """Prompts to token states.

    Args:
        clip: a loaded CLIP.
        template: the sentence that labels stand in.
        states: ``hidden`` are the states after the final layer norm (the authors' code), ``projected`` those in the
            joint space. None picks hidden where its width equals the joint space's, so that image states can be added.
        context: ``content`` keeps states up to and including the end token, ``full`` all 77.
    """

    def __init__(
        self, clip: Clip, template: Template, states: StatesKind | None = None, context: Context = "content"
    ) -> None:
        self._clip = clip
        self._model = clip.model.text_model
        self._layers = [_Layer.of(module) for module in self._model.encoder.layers]
        self.template = template
        self.context = context
        width, joint = self._model.config.hidden_size, clip.model.config.projection_dim
        if states == "hidden" and width != joint:
            raise UserError(
                f"hidden text states of {clip.name} are {width} wide, image states {joint}", "Use --states projected"
            )
        self.states: StatesKind = states or ("hidden" if width == joint else "projected")
        self.max_tokens = int(self._model.config.max_position_embeddings)
        self.prefix_ids = template.shared_tokens(self.tokenize)
        with torch.inference_mode():
            self._prefix_keys, self._prefix_values, self.prefix = self._run_prefix()

    def tokenize(self, prompts: list[str]) -> list[list[int]]:
        """Return token ids with begin and end, neither padded nor cut."""
        encoded = self._clip.tokenizer(prompts, padding=False, truncation=False, verbose=False)["input_ids"]
        return [list(row) for row in encoded]

    def encode(self, token_ids: list[list[int]], tokens_per_batch: int = 4096) -> States:
        """Encode tokenized prompts that start with :attr:`prefix_ids` and have at most :attr:`max_tokens` tokens.

        Returns:
            The states after the prefix, in the order given. Memory grows with the number of prompts: call it by shard.
        """
        own = [ids[len(self.prefix_ids) :] for ids in token_ids]
        lengths = np.array([len(ids) for ids in own], np.int64)
        if self.context == "full":
            padding = self._clip.tokenizer.pad_token_id
            stored = np.full(len(own), self.max_tokens - len(self.prefix_ids), np.int64)
        else:
            padding, stored = 0, lengths
        starts = np.cumsum(stored) - stored
        tokens = np.empty((int(stored.sum()), len(self.prefix[0])), np.float32)
        pooled = np.empty((len(own), self._clip.model.config.projection_dim), np.float32)
        for rows in _batches_of_equal_length(stored, tokens_per_batch):
            count = int(stored[rows[0]])
            ids = np.array([own[row] + [padding] * (count - len(own[row])) for row in rows])
            ends = lengths[rows] - 1
            batch_states, batch_pooled = self._run(torch.from_numpy(ids), torch.from_numpy(ends))
            tokens[starts[rows][:, None] + np.arange(count)] = batch_states
            pooled[rows] = batch_pooled
        return States(tokens, stored, pooled)

    def check(self, token_ids: list[list[int]]) -> float:
        """Compare a few prompts with transformers' own forward, padded to the full length.

        Returns:
            The largest absolute difference of any stored state.

        Raises:
            DptrError: it is above the tolerance of this precision.
        """
        ours = self.encode(token_ids)
        padding = self._clip.tokenizer.pad_token_id
        padded = [ids + [padding] * (self.max_tokens - len(ids)) for ids in token_ids]
        with torch.inference_mode():
            output = self._model(input_ids=torch.tensor(padded, device=self._clip.device)).last_hidden_state
            theirs = self._finish(output).float().cpu().numpy()
        skip = len(self.prefix_ids)
        kept = [row[skip : skip + length] for row, length in zip(theirs, ours.lengths, strict=True)]
        worst = float(np.abs(np.concatenate(kept) - ours.tokens).max())
        worst = max(worst, float(np.abs(theirs[:, :skip] - self.prefix).max(initial=0.0)))
        if not worst <= TOLERANCE[self._clip.model.dtype]:
            raise DptrError(
                f"text states differ from transformers' own by {worst:.2g}", "Please report it with your CLIP's name"
            )
        return worst

    def _run_prefix(self) -> tuple[list[torch.Tensor], list[torch.Tensor], NDArray[np.float32]]:
        ids = torch.tensor([self.prefix_ids], device=self._clip.device)
        count = len(self.prefix_ids)
        x = self._model.embeddings(input_ids=ids)
        mask = torch.ones(count, count, dtype=torch.bool, device=x.device).tril()
        keys, values = [], []
        for layer in self._layers:
            x, key, value = layer.run(x, None, None, mask)
            keys.append(key)
            values.append(value)
        return keys, values, self._finish(self._model.final_layer_norm(x))[0].float().cpu().numpy()

    @torch.inference_mode()
    def _run(self, ids: torch.Tensor, ends: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run own tokens (batch, own) after the prefix; ``ends`` (batch,) is each prompt's end token."""
        ids, ends = ids.to(self._clip.device), ends.to(self._clip.device)
        count, own = len(self.prefix_ids), ids.shape[1]
        positions = torch.arange(count, count + own, device=ids.device)[None]
        x = self._model.embeddings(input_ids=ids, position_ids=positions)
        mask = torch.ones(own, count + own, dtype=torch.bool, device=ids.device).tril(count)
        for layer, keys, values in zip(self._layers, self._prefix_keys, self._prefix_values, strict=True):
            x, _, _ = layer.run(x, keys, values, mask)
        hidden = self._model.final_layer_norm(x)
        at_end = hidden[torch.arange(len(ids), device=ids.device), ends]
        pooled = self._clip.model.text_projection(at_end)
        return self._finish(hidden).float().cpu().numpy(), pooled.float().cpu().numpy()

    def _finish(self, hidden: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self._clip.model.text_projection(hidden) if self.states == "projected" else hidden
        return projected


def _batches_of_equal_length(lengths: NDArray[np.int64], tokens_per_batch: int) -> list[NDArray[np.int64]]:
    """Split row numbers into batches of equal length, long ones first, so that memory peaks at once."""
    order = np.argsort(-lengths, kind="stable")
    edges = np.flatnonzero(np.diff(lengths[order])) + 1
    batches: list[NDArray[np.int64]] = []
    for rows in np.split(order, edges):
        size = max(1, tokens_per_batch // max(1, int(lengths[rows[0]])))
        batches.extend(rows[start : start + size] for start in range(0, len(rows), size))
    return batches
