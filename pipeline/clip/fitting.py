"""Whether the parts of a model fit each other: its weights its configuration, its tokenizer its text tower."""

from __future__ import annotations

import re
from typing import Any

from dptr.pipeline.clip.families.base import Family

#: Every tokenizer has several tokens for these together; one without a vocabulary has its unknown token only.
PROBES = ["street", "Q", "7"]


def weights_problem(loading: dict[str, Any]) -> str | None:
    """Say which weights do not fit; transformers draws such tensors at random, or leaves them out."""
    if loading["mismatched_keys"]:
        key, stored, expected = min(loading["mismatched_keys"])
        return f"its weights have {key} of shape {tuple(stored)}, its config.json says {tuple(expected)}"
    if loading["missing_keys"]:
        return f"its weights lack {min(loading['missing_keys'])}"
    layers = [key for key in loading["unexpected_keys"] if re.search(r"\.layers?\.\d+\.", key)]
    return f"its weights have {min(layers)}, a layer that its config.json does not have" if layers else None


def tokenizer_problem(tokenizer: Any, spelt: list[list[int]], family: Family, model: Any) -> str | None:
    """Say why a tokenizer cannot be used; ``spelt`` are its tokens for :data:`PROBES`."""
    if not tokenizer.is_fast:
        return "its tokenizer has no tokenizer.json, which says where in a prompt a token stands"
    if len({token for row in spelt for token in row} - set(tokenizer.all_special_ids)) < len(PROBES):
        return "it has no tokenizer, or one that knows no letters"
    if family.padding is None and tokenizer.pad_token_id is None:
        return "its tokenizer has no padding token"
    largest, room = max(tokenizer.get_vocab().values()), family.vocabulary(model)
    return f"its tokenizer has token {largest}, its text model {room} of them" if largest >= room else None
