"""A decoder's weights under the names of PARSeq and of OpenOCR, so that their users can start from it.

The layers compute the same; only the names and the packing differ: PyTorch's ``MultiheadAttention`` keeps queries, keys
and values in one matrix. Class 0 is the end in all three, begin and padding come last. Names as in ``baudm/parseq``
(``strhub/models/parseq/model.py``) and ``Topdu/OpenOCR`` (``openrec/modeling/decoders/parseq_decoder.py``, where the
recogniser's attribute ``decoder`` holds the same module).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dptr.cache.errors import UserError
from dptr.trainer.model.decoders.parseq import ParseqDecoder

Family = Literal["parseq", "openocr"]

_LAYER_PARTS = {
    "norm_query": "norm_q",
    "norm_content": "norm_c",
    "norm_cross": "norm1",
    "norm_feed_forward": "norm2",
    "feed_forward.0": "linear1",
    "feed_forward.3": "linear2",
    "self_attention.out": "self_attn.out_proj",
    "cross_attention.out": "cross_attn.out_proj",
}
_ATTENTIONS = {"self_attention": "self_attn", "cross_attention": "cross_attn"}


def renamed(decoder: ParseqDecoder, family: Family) -> dict[str, Tensor]:
    """Return the decoder's weights, their shapes unchanged, under another project's names.

    Raises:
        UserError: the decoder is not as wide as the memory it reads, which those projects take for granted.
    """
    shape = decoder.shape
    if shape.dim != shape.memory_dim:
        raise UserError(
            f"the decoder is {shape.dim} wide and its memory {shape.memory_dim}; {family} needs them equal",
            f"Pre-train with --set decoder.dim={shape.memory_dim}",
        )
    own = decoder.state_dict()
    tensors = {
        "text_embed.embedding.weight": own["embedding.weight"],
        "pos_queries": own["positions"][None],
        "head.weight": own["head.weight"],
        "head.bias": own["head.bias"],
        "decoder.norm.weight": own["norm.weight"],
        "decoder.norm.bias": own["norm.bias"],
    }
    for index in range(shape.layers):
        for kind in ("weight", "bias"):
            source, target = f"layers.{index}.", f"decoder.layers.{index}."
            for name, other in _LAYER_PARTS.items():
                tensors[f"{target}{other}.{kind}"] = own[f"{source}{name}.{kind}"]
            for name, other in _ATTENTIONS.items():
                packed = torch.cat([own[f"{source}{name}.{part}.{kind}"] for part in ("query", "key_value")])
                tensors[f"{target}{other}.in_proj_{kind}"] = packed
    prefix = "decoder." if family == "openocr" else ""
    return {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}
