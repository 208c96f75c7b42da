"""Chinese-CLIP and AltCLIP: a BERT or XLM-R as text encoder, which looks both ways and is pooled at its first token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dptr.pipeline.clip.families.base import Family, Way

if TYPE_CHECKING:
    import torch


class ChineseClip(Family):
    """A BERT's embeddings; the state of ``[CLS]``, projected, is the pooled vector. Its mask hides padding."""

    way: Way = "exact length"
    vision = "ChineseCLIPVision"
    image_processor = "ChineseCLIPImageProcessorPil"

    def pool_text(self, model: Any, embeddings: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """See :meth:`Family.pool_text`: the first of (batch, length, text_dim), whatever the lengths (batch,)."""
        return self.project_text(model, embeddings[:, 0])


class AltClip(ChineseClip):
    """An XLM-R's embeddings, brought to the width of the CLIP that it learnt from; else as Chinese-CLIP."""

    vision = "AltCLIPVision"
    image_processor = "CLIPImageProcessorPil"

    def most_tokens(self, model: Any) -> int:
        """See :meth:`Family.most_tokens`: positions count from behind the padding token's number."""
        return super().most_tokens(model) - int(model.config.text_config.pad_token_id) - 1

    def text_dim(self, model: Any) -> int:
        """See :meth:`Family.text_dim`."""
        return int(model.config.text_config.project_dim)
