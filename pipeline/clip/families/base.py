"""What a family of CLIPs is to its encoders: how it is run, what of its results is a state, what a pooled vector.

:class:`Family` does as CLIP itself; another family overrides what differs. All of its methods take the model, so that
one object serves every model of the family. docs/clip_families.md has the same in one table.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dptr.cache.crops.dataset import preprocess

if TYPE_CHECKING:
    import torch
    from PIL import Image

#: How a prompt may be run with the result of its authors' way: against the keys and values of what all prompts share
#: (a causal encoder), at its own length (one whose mask hides padding), or filled up to the length of training.
Way = Literal["after prefix", "exact length", "fixed length"]


class Family:
    """CLIP: a causal text encoder whose end token is pooled, an image encoder whose class token is.

    Attributes:
        vision: what transformers calls its image encoder, before ``Config`` and ``Model``.
        way: how prompts are run. padding: the token id that its authors fill prompts up with, where that is not the one
            of its tokenizer. image_processor: transformers' class that prepares its pictures.
        image_side: what the names of its image encoder's weights begin with.
        class_tokens: tokens of a picture, before the others, that stand nowhere in it.
    """

    vision = "CLIPVision"
    way: Way = "after prefix"
    image_processor = "CLIPImageProcessorPil"
    image_side: tuple[str, ...] = ("vision_model.", "visual_projection.")
    class_tokens = 1

    def __init__(self, padding: int | None = None, vision: str | None = None) -> None:
        self.padding = padding
        self.vision = vision or self.vision

    def tokenizer(self, folder: Path) -> Any:
        """Load the tokenizer in ``folder``."""
        import transformers

        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def problem(self, model: Any) -> str | None:
        """Say why a model of the family cannot be used; None where it can."""
        return None

    # The text encoder.

    def text_model(self, model: Any) -> Any:
        """Return the module that token ids go into."""
        return model.text_model

    def most_tokens(self, model: Any) -> int:
        """Return how many tokens a prompt can have, begin and end included."""
        return int(model.config.text_config.max_position_embeddings)

    def vocabulary(self, model: Any) -> int:
        """Return how many tokens the text encoder knows."""
        return int(model.config.text_config.vocab_size)

    def text_dim(self, model: Any) -> int:
        """Return how wide the text encoder's embeddings are."""
        return int(model.config.text_config.hidden_size)

    def joint_dim(self, model: Any) -> int:
        """Return how wide the joint space of texts and images is."""
        return int(model.config.projection_dim)

    def text_embeddings(self, model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embed token ids (batch, length) as (batch, length, text_dim); ``mask`` is 1 where a token is real."""
        embeddings: torch.Tensor = self.text_model(model)(input_ids=ids, attention_mask=mask).last_hidden_state
        return embeddings

    def project_text(self, model: Any, embeddings: torch.Tensor) -> torch.Tensor:
        """Take embeddings (..., text_dim) to the joint space (..., joint_dim)."""
        projected: torch.Tensor = model.text_projection(embeddings)
        return projected

    def pool_text(self, model: Any, embeddings: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Make pooled vectors (batch, joint_dim) of what ran (batch, length, text_dim), of ``lengths`` (batch,)."""
        last = embeddings.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, embeddings.shape[2]))[:, 0]
        return self.project_text(model, last)

    def text_features(self, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run prompts, padded (batch, length), by the library's own forward, for comparison.

        Returns:
            embeddings (batch, length, text_dim) and pooled vectors (batch, joint_dim).
        """
        output = model.get_text_features(input_ids=ids, attention_mask=mask if self.way == "exact length" else None)
        return output.last_hidden_state, output.pooler_output

    # The image encoder.

    def image_side_length(self, model: Any) -> int:
        """Return height and width of the pictures that it takes, in pixels."""
        return int(model.config.vision_config.image_size)

    def image_tokens(self, model: Any) -> int:
        """Return how many tokens a picture has."""
        return int((self.image_side_length(model) // model.config.vision_config.patch_size) ** 2) + self.class_tokens

    def pixels(self, model: Any, processor: Any, image: Image.Image) -> NDArray[np.float32]:
        """Prepare a picture as the family's authors do: (3, height, width)."""
        return np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0], np.float32)

    def stretched(self, model: Any, processor: Any, image: Image.Image) -> NDArray[np.float32]:
        """Stretch a picture to the encoder's square: (3, height, width)."""
        side = self.image_side_length(model)
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (processor.image_mean, processor.image_std))
        return np.asarray((preprocess(image, side, side).astype(np.float32) / 255 - mean) / std, np.float32)

    def image_embeddings(self, model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run pictures (batch, 3, height, width).

        Returns:
            every token in the joint space (batch, tokens, joint_dim), by what makes the pooled vector of a picture, and
            the pooled vectors (batch, joint_dim).
        """
        hidden = model.vision_model(pixel_values=pixels).last_hidden_state
        tokens: torch.Tensor = model.visual_projection(model.vision_model.post_layernorm(hidden))
        return tokens, tokens[:, 0]
