"""CLIP's text encoder: prompts to token embeddings, equal to transformers' but with less computation.

In a causal encoder an embedding does not depend on later tokens. Hence the template's tokens before the label have the
same embeddings, keys and values in every prompt: :class:`AfterPrefix` runs them once, and every prompt runs only its
own tokens against these. An encoder with bidirectional attention shares nothing between prompts: :class:`Whole` runs
them at their own length where its mask hides padding, and at the one length of its training where it has none.

Prompts of equal length form a batch, so that nothing is padded. :meth:`TextEncoder.check` compares the result with the
plain forward on real prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dptr.cache.choices import Context, EmbeddingsKind
from dptr.cache.errors import DptrError, UserError
from dptr.cache.stores.shards import Embeddings
from dptr.pipeline.clip.batch_size import Halving, batch_for, batch_per_core
from dptr.pipeline.clip.families import Family
from dptr.pipeline.clip.loading import Clip
from dptr.pipeline.text.templates import Template, Tokenized

#: On a CPU: few enough to stay in its cache.
TOKENS_PER_BATCH = 1024
#: Maximum distance of an embedding from transformers' in fp32, relative to its 2-norm, and minimum cosine in lower
#: precision.
MOST_APART = 1e-4
LEAST_COSINE = 0.99


class TextEncoder:
    """Prompts to token embeddings.

    Args:
        clip: a loaded CLIP.
        template: the sentence with the place of the label.
        embeddings: ``hidden`` are those after the final layer norm (the authors' code), ``projected`` those in the
            joint space. None picks hidden where its width equals the joint space's, so that image embeddings can be
            added.
        context: ``content`` keeps embeddings up to and including the end token, ``full`` pads prompts as the
            model's authors do (OpenAI's tokenizer with token 0) and keeps all (77 in CLIP).

    Attributes:
        prefix_ids: tokens that start every prompt. prefix: their embeddings, shape (len(prefix_ids), dim), float32.
        max_tokens: the longest prompt that the encoder takes, begin and end included.
        tokens_per_batch: how many are encoded at once where nothing else is asked for.

    Raises:
        UserError: the template alone is too long, the kind of embeddings does not suit, or embeddings are no numbers.
    """

    def __init__(
        self, clip: Clip, template: Template, embeddings: EmbeddingsKind | None = None, context: Context = "content"
    ) -> None:
        self._clip = clip
        self._family, self._model = clip.family, clip.model
        self.template, self.context = template, context
        self.embeddings: EmbeddingsKind = _embeddings_kind(clip, embeddings)
        self.max_tokens = self._family.most_tokens(self._model)
        if self._family.way != "fixed length":
            self.max_tokens = int(min(self.max_tokens, clip.tokenizer.model_max_length))
        self._special = set(clip.tokenizer.all_special_ids)
        # CLIP's end token is also its unknown token, which never occurs with byte-level subwords.
        ends = self.tokenize([""])[0]
        self._ends = len(ends)
        self._unknown = clip.tokenizer.unk_token_id if clip.tokenizer.unk_token_id not in ends else None
        self.tokens_per_batch = batch_for(clip.model, self._family.text_dim(clip.model), 1, TOKENS_PER_BATCH)
        self._halving = Halving("tokens")
        self._require_room(template)
        self._forward = self._choose_forward(template)
        self.prefix_ids = self._forward.prefix_ids
        self.prefix = self._finish(self._forward.prefix)
        self._require_numbers(self.prefix)

    def tokenize(self, prompts: list[str]) -> list[list[int]]:
        """Return token ids with begin and end, neither padded nor cut."""
        if not prompts:
            return []
        encoded = self._clip.tokenizer(prompts, padding=False, truncation=False, verbose=False)["input_ids"]
        return [list(row) for row in encoded]

    def tokenize_with_places(self, prompts: list[str]) -> list[Tokenized]:
        """Return token ids as :meth:`tokenize` does, and each token's offsets in the prompt."""
        if not prompts:
            return []
        encoded = self._clip.tokenizer(
            prompts, padding=False, truncation=False, verbose=False, return_offsets_mapping=True
        )
        return [
            Tokenized(list(ids), [(int(start), int(stop)) for start, stop in offsets], encoded.word_ids(row))
            for row, (ids, offsets) in enumerate(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))
        ]

    def why_unusable(self, token_ids: list[int]) -> str | None:
        """Return why a prompt of these tokens (of :meth:`tokenize`) is rejected, else None."""
        if len(token_ids) > self.max_tokens:
            return f"prompt longer than {self.max_tokens} tokens"
        if self._unknown in token_ids:
            return "a character that the tokenizer lacks"
        if sum(token in self._special for token in token_ids) > self._ends:
            return "label spells a special token of the tokenizer"
        if token_ids[: len(self.prefix_ids)] != self.prefix_ids:
            return "prompt does not start with the shared tokens"
        return None

    def pieces(self) -> dict[int, str]:
        """Return the characters of each subword token by its id, without special tokens.

        Markers of word boundaries are removed.
        """
        tokenizer = self._clip.tokenizer
        ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
        texts = tokenizer.batch_decode([[piece] for piece in ids])
        return {piece: text.strip().removeprefix("##") for piece, text in zip(ids, texts, strict=True)}

    def encode(self, token_ids: list[list[int]], tokens_per_batch: int | None = None) -> Embeddings:
        """Encode tokenized prompts that start with :attr:`prefix_ids` and have at most :attr:`max_tokens` tokens.

        Returns:
            The embeddings after the prefix, in the order given. Memory grows with the number of prompts: call it by
            shard. They do not depend on ``tokens_per_batch`` (by default the encoder's own) but for rounding.

        Raises:
            UserError: the model gives embeddings that are no numbers.
        """
        own = [ids[len(self.prefix_ids) :] for ids in token_ids]
        lengths = np.array([len(ids) for ids in own], np.int64)
        stored = np.full_like(lengths, self.max_tokens - len(self.prefix_ids)) if self.context == "full" else lengths
        starts = np.cumsum(stored) - stored
        tokens = np.empty((int(stored.sum()), self.prefix.shape[1]), np.float32)
        pooled = np.empty((len(own), self._family.joint_dim(self._model)), np.float32)

        def encode_batch(rows: NDArray[np.int64]) -> None:
            ids = self._pad([own[row] for row in rows], int(stored[rows[0]]))
            hidden = self._forward.run(ids)
            finished = self._finish(hidden[:, : ids.shape[1]])
            self._require_numbers(finished)
            tokens[starts[rows][:, None] + np.arange(ids.shape[1])] = finished
            pooled[rows] = self._pool(hidden, lengths[rows])

        with batch_per_core(self._clip.device) as pool:
            run = np.full_like(stored, self.max_tokens) if self._family.way == "fixed length" else stored
            batches = _batches_of_equal_length(stored, run, tokens_per_batch or self.tokens_per_batch)
            for _ in pool.map(lambda rows: self._halving.run(encode_batch, rows, int(run[rows[0]])), batches):
                pass  # raises what a batch raised
        return Embeddings(tokens, stored, pooled)

    def check(self, token_ids: list[list[int]]) -> float:
        """Compare a few prompts with transformers' own forward, padded to the full length.

        Returns:
            The largest distance of an embedding from transformers' own, relative to its norm.

        Raises:
            DptrError: they differ by more than :data:`MOST_APART` (fp32), or their cosine is too small (bf16).
        """
        ours = self.encode(token_ids)
        embeddings, pooled = self._plain_forward(token_ids)
        shared = len(self.prefix_ids)
        pairs = [(np.tile(self.prefix, (len(embeddings), 1)), embeddings[:, :shared].reshape(-1, embeddings.shape[2]))]
        kept = [row[shared : shared + length] for row, length in zip(embeddings, ours.lengths, strict=True)]
        pairs += [(ours.tokens, np.concatenate(kept)), (ours.pooled, pooled)]
        worst = max(_most_apart(one, other) for one, other in pairs)
        if self._clip.model.dtype == torch.float32:
            agree = worst <= MOST_APART
        else:
            agree = all(bool((_cosines(one, other) >= LEAST_COSINE).all()) for one, other in pairs)
        if not agree:
            raise DptrError(
                f"text embeddings differ from transformers' own by {worst:.2g}",
                "Please report it with your CLIP's name",
            )
        return worst

    @torch.inference_mode()
    def _plain_forward(self, token_ids: list[list[int]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        ids = self._pad(token_ids, self.max_tokens)
        lengths = torch.tensor([len(row) for row in token_ids], device=ids.device)
        mask = (torch.arange(self.max_tokens, device=ids.device) < lengths[:, None]).long()
        embeddings, pooled = self._family.text_features(self._model, ids, mask)
        return self._finish(embeddings), pooled.float().cpu().numpy()

    def _require_room(self, template: Template) -> None:
        needed = len(self.tokenize([template.prompt("a")])[0])
        if needed > self.max_tokens:
            raise UserError(
                f"the template has {needed} tokens with one letter in it, {self._clip.name} takes {self.max_tokens}",
                "Shorten it (--template)",
            )

    def _require_numbers(self, embeddings: NDArray[np.float32]) -> None:
        if not np.isfinite(embeddings).all():
            raise UserError(
                f"{self._clip.name} computes text embeddings with NaN or infinity",
                "Use a CLIP with intact weights, or --precision fp32",
            )

    def _choose_forward(self, template: Template) -> Whole | AfterPrefix:
        if self._family.way == "after prefix":
            return AfterPrefix(self._family.text_model(self._model), template.shared_tokens(self.tokenize_with_places))
        if self._family.way == "fixed length":
            return Whole(self._family, self._model, self._clip.padding)
        if self.context == "full":
            raise UserError(
                f"{self._clip.name} is bidirectional: its padding has no embeddings", "Use --context content"
            )
        return Whole(self._family, self._model)

    def _pad(self, rows: list[list[int]], length: int) -> torch.Tensor:
        padded = [row + [self._clip.padding] * (length - len(row)) for row in rows]
        return torch.tensor(padded, device=self._clip.device)

    @torch.inference_mode()
    def _pool(self, hidden: torch.Tensor, lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        real = torch.from_numpy(lengths).to(hidden.device)
        pooled: NDArray[np.float32] = self._family.pool_text(self._model, hidden, real).float().cpu().numpy()
        return pooled

    @torch.inference_mode()
    def _finish(self, hidden: torch.Tensor) -> NDArray[np.float32]:
        embeddings = self._family.project_text(self._model, hidden) if self.embeddings == "projected" else hidden
        finished: NDArray[np.float32] = embeddings.float().cpu().numpy()
        return finished


class Whole:
    """Every prompt from its first token, through transformers' own forward.

    Args:
        filling: the token id that fills prompts up to the encoder's length, with nothing masked; None: each prompt runs
            at its own length.

    Attributes:
        prefix_ids: tokens that all prompts share: none. prefix: their embeddings, shape (0, dim).
    """

    def __init__(self, family: Family, model: Any, filling: int | None = None) -> None:
        self._family, self._model, self._filling = family, model, filling
        self.prefix_ids: list[int] = []
        self.prefix = torch.zeros(0, family.text_dim(model), dtype=model.dtype, device=model.device)

    @torch.inference_mode()
    def run(self, ids: torch.Tensor) -> torch.Tensor:
        """Return final embeddings (batch, at least own, dim) of own tokens (batch, own), then those of filling."""
        if self._filling is None:
            return self._family.text_embeddings(self._model, ids, torch.ones_like(ids))
        missing = self._family.most_tokens(self._model) - ids.shape[1]
        return self._family.text_embeddings(self._model, F.pad(ids, (0, missing), value=self._filling))


class AfterPrefix:
    """Own tokens only, against the keys and values of a prefix that was run once. For causal encoders as CLIP's."""

    @torch.inference_mode()
    def __init__(self, text_model: Any, prefix_ids: list[int]) -> None:
        self._model = text_model
        self._layers = [_Layer.of(module) for module in text_model.encoder.layers]
        self.prefix_ids = prefix_ids
        self._keys_values: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * len(self._layers)
        embeddings, self._keys_values = self._run(torch.tensor([prefix_ids], device=text_model.device), 0)
        self.prefix = embeddings[0]

    @torch.inference_mode()
    def run(self, ids: torch.Tensor) -> torch.Tensor:
        """Return final embeddings (batch, own, dim) of own tokens (batch, own)."""
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


def _embeddings_kind(clip: Clip, asked: EmbeddingsKind | None) -> EmbeddingsKind:
    width, joint = clip.family.text_dim(clip.model), clip.family.joint_dim(clip.model)
    if asked == "hidden" and width != joint:
        raise UserError(
            f"hidden text embeddings of {clip.name} are {width} wide, image embeddings {joint}",
            "Use --embeddings projected",
        )
    return asked or ("hidden" if width == joint else "projected")


def _batches_of_equal_length(
    lengths: NDArray[np.int64], run: NDArray[np.int64], tokens_per_batch: int
) -> list[NDArray[np.int64]]:
    """Split row numbers into batches of equal length, long ones first, so that memory peaks at once.

    Each has as many of the tokens that are ``run`` as are asked for.
    """
    order = np.argsort(-lengths, kind="stable")
    edges = np.flatnonzero(np.diff(lengths[order])) + 1
    batches: list[NDArray[np.int64]] = []
    for rows in np.split(order, edges):
        size = max(1, tokens_per_batch // max(1, int(run[rows[0]])))
        batches.extend(rows[start : start + size] for start in range(0, len(rows), size))
    return batches


def _most_apart(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Return the largest distance of two rows as a share of the second one's length; nan where either has one."""
    if not len(ours):
        return 0.0
    distances: NDArray[np.float32] = np.linalg.norm(ours - theirs, axis=1) / (np.linalg.norm(theirs, axis=1) + 1e-12)
    return float(distances.max())


def _cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    products: NDArray[np.float32] = (one * other).sum(1) / (
        np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1) + 1e-12
    )
    return products
