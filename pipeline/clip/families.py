"""What differs between kinds of CLIP: how a text encoder runs, which of its results are token and pooled embeddings.

:class:`Family` is CLIP itself; Chinese-CLIP, AltCLIP, SigLIP and SigLIP 2 override what differs. All methods take the
model, so that one object serves every model of the family. A new family is a class and a line in :data:`FAMILIES`.
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


#: By transformers' ``model_type``.
FAMILIES: dict[str, Family] = {
    "clip": Family(padding=0),  # OpenAI's tokenizer and OpenCLIP's fill up with 0, transformers' with the end token
    "metaclip_2": Family(vision="MetaClip2Vision"),
    "chinese_clip": ChineseClip(),
    "altclip": AltClip(),
    "siglip": Siglip(),
    "siglip2": Siglip2(),
}
