"""Differences between kinds of CLIP: running the text encoder, and its token and pooled embeddings.

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

#: Ways to run a prompt that equal the authors' result: after cached keys and values of the shared prefix (causal
#: encoders), at its own length (encoders with a padding mask), or padded to the training length.
Way = Literal["after prefix", "exact length", "fixed length"]


class Family:
    """CLIP: a causal text encoder whose end token is pooled, an image encoder whose class token is.

    Attributes:
        vision: what transformers calls its image encoder, before ``Config`` and ``Model``.
        way: how prompts are run. padding: the token id that its authors pad prompts with, if it is not its
            tokenizer's. image_processor: transformers' class that prepares its pictures.
        image_side: what the names of its image encoder's weights begin with.
        class_tokens: number of leading image tokens without a position.
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
        """Return why a model of the family cannot be used, else None."""
        return None

    # The text encoder.

    def text_model(self, model: Any) -> Any:
        """Return the module that token ids go into."""
        return model.text_model

    def most_tokens(self, model: Any) -> int:
        """Return how many tokens a prompt can have, begin and end included."""
        return int(model.config.text_config.max_position_embeddings)

    def vocabulary(self, model: Any) -> int:
        """Return the size of the text encoder's vocabulary."""
        return int(model.config.text_config.vocab_size)

    def text_dim(self, model: Any) -> int:
        """Return the width of the text encoder's embeddings."""
        return int(model.config.text_config.hidden_size)

    def joint_dim(self, model: Any) -> int:
        """Return the width of the joint space of texts and images."""
        return int(model.config.projection_dim)

    def text_embeddings(self, model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Embed token ids (batch, length) as (batch, length, text_dim); ``mask`` is 1 where a token is real."""
        embeddings: torch.Tensor = self.text_model(model)(input_ids=ids, attention_mask=mask).last_hidden_state
        return embeddings

    def project_text(self, model: Any, embeddings: torch.Tensor) -> torch.Tensor:
        """Project embeddings (..., text_dim) into the joint space (..., joint_dim)."""
        projected: torch.Tensor = model.text_projection(embeddings)
        return projected

    def pool_text(self, model: Any, embeddings: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Pool embeddings (batch, length, text_dim) of ``lengths`` (batch,): (batch, joint_dim)."""
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
        """Return the height and width of input pictures in pixels."""
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
    """BERT; the projected embedding of ``[CLS]`` is the pooled vector. Padding is masked."""

    way: Way = "exact length"
    vision = "ChineseCLIPVision"
    image_processor = "ChineseCLIPImageProcessorPil"

    def pool_text(self, model: Any, embeddings: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """See :meth:`Family.pool_text`: the first of (batch, length, text_dim), whatever the lengths (batch,)."""
        return self.project_text(model, embeddings[:, 0])


class AltClip(ChineseClip):
    """XLM-R with a projection to the width of its teacher CLIP; else as Chinese-CLIP."""

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

        Loaded from tokenizer.json, because SigLIP's tokenizer class gives no token offsets. It folds case like SigLIP's
        training, even if the file does not.
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
    """SigLIP 2 for pictures of any shape (NaFlex); here pictures are squares, so that all have equally many tokens."""

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
