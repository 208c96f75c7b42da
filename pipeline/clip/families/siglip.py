"""SigLIP and SigLIP 2: text padded to one length, padding seen; images without a class token, pooled by attention."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dptr.pipeline.clip.families.base import Family, Way

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Siglip(Family):
    """SigLIP, and SigLIP 2 of one size of pictures.

    It was trained on 64 tokens with nothing masked, so every prompt runs at that length; the last of the 64 is pooled.
    A picture's pooled vector comes of an attention over its tokens; a token is taken to the joint space by the same
    attention over that token alone.
    """

    way: Way = "fixed length"
    vision = "SiglipVision"
    image_processor = "SiglipImageProcessorPil"
    image_side: tuple[str, ...] = ("vision_model.",)
    class_tokens = 0

    def tokenizer(self, folder: Path) -> Any:
        """See :meth:`Family.tokenizer`.

        Read from tokenizer.json, as the class that goes by SigLIP's name cannot say where in a prompt a token stands.
        It folds case, as all of SigLIP's training did, also where the file leaves that to who calls it.
        """
        import transformers
        from tokenizers import normalizers

        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False)
        backend = tokenizer.backend_tokenizer
        if tokenizer(["Aa"])["input_ids"] != tokenizer(["aa"])["input_ids"]:
            following = [] if backend.normalizer is None else [backend.normalizer]
            backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *following])
        return tokenizer

    def problem(self, model: Any) -> str | None:
        """See :meth:`Family.problem`."""
        if not model.config.vision_config.vision_use_head:
            return "its image encoder has no head that pools"
        text, image = model.config.text_config.projection_size, self.joint_dim(model)
        return None if text == image else f"its text vectors are {text} wide, its image vectors {image}"

    def joint_dim(self, model: Any) -> int:
        """See :meth:`Family.joint_dim`."""
        return int(model.config.vision_config.hidden_size)

    def project_text(self, model: Any, embeddings: torch.Tensor) -> torch.Tensor:
        """See :meth:`Family.project_text`: (..., text_dim) to (..., joint_dim)."""
        projected: torch.Tensor = model.text_model.head(embeddings)
        return projected

    def pool_text(self, model: Any, embeddings: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """See :meth:`Family.pool_text`: the last of (batch, length, text_dim), padding or not."""
        return self.project_text(model, embeddings[:, -1])

    def image_embeddings(self, model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Family.image_embeddings`: (batch, 3, height, width) to (batch, tokens, dim) and (batch, dim)."""
        output = model.vision_model(**self._inputs(model, pixels))
        hidden = output.last_hidden_state
        tokens: torch.Tensor = model.vision_model.head(hidden.flatten(0, 1)[:, None]).view_as(hidden)
        return tokens, output.pooler_output

    def _inputs(self, model: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixel_values": pixels}


class Siglip2(Siglip):
    """SigLIP 2 of pictures of any shape (NaFlex), which here are made square, so that all have as many tokens."""

    vision = "Siglip2Vision"
    image_processor = "Siglip2ImageProcessorPil"

    def image_side_length(self, model: Any) -> int:
        """See :meth:`Family.image_side_length`."""
        return self._patches_a_side(model) * int(model.config.vision_config.patch_size)

    def pixels(self, model: Any, processor: Any, image: Image.Image) -> NDArray[np.float32]:
        """See :meth:`Family.pixels`: (3, height, width)."""
        return self.stretched(model, processor, image)

    def _inputs(self, model: Any, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        batch, side, size = len(pixels), self._patches_a_side(model), int(model.config.vision_config.patch_size)
        cut = pixels.unfold(2, size, size).unfold(3, size, size)  # (batch, 3, side, side, size, size)
        shapes = pixels.new_tensor([[side, side]] * batch).long()
        return {
            "pixel_values": cut.permute(0, 2, 3, 4, 5, 1).reshape(batch, side * side, -1),
            "pixel_attention_mask": shapes.new_ones(batch, side * side),
            "spatial_shapes": shapes,
        }

    def _patches_a_side(self, model: Any) -> int:
        return int(model.config.vision_config.num_patches**0.5)
