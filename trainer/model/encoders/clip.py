"""CLIP's own image tower as the encoder: word images become tokens in the space of the stores' states.

Tokens pass through the final layer norm and the projection, as those of an ORP bank do. The recipe carries the tower's
configuration once it is resolved, so that a run can be read where the CLIP it started from is not at hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dptr.cache.errors import UserError
from dptr.cache.file_names import IMAGE_PROCESSOR_FILE, MODEL_CONFIG_FILE, WEIGHTS_FILE
from dptr.cache.tensor_hash import hash_tensors
from dptr.trainer.model.encoders.base import PretrainedEncoder
from dptr.trainer.training.settings import EncoderSettings

PREFIX = "clip:"
# CLIP's published normalisation, in units of [0, 1], for a model that comes without its own.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipEncoder(PretrainedEncoder):
    """Word images to tokens; the class token is left out, as it has no position in the image.

    Attributes:
        dim: width of the joint space. size: (height, width) of the images it takes. grid: (rows, columns) of tokens.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        if not settings.config:
            raise UserError(f"encoder.kind = {settings.kind!r} needs its configuration", "Start with `dptr finetune`")
        described = json.loads(settings.config)
        mean, std = described.pop("image_mean"), described.pop("image_std")
        config: Any = CLIPVisionConfig(**described)
        self.tower: Any = CLIPVisionModelWithProjection(config)
        side = config.image_size // config.patch_size
        self.dim = int(config.projection_dim)
        self.size = (config.image_size, config.image_size)
        self.grid = (side, side)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (batch, 3, height, width) in [-1, 1] to tokens (batch, tokens, dim), row by row."""
        return self.tokens_and_pooled(images)[0]

    def tokens_and_pooled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images as above to tokens, and to the vectors (batch, dim) that CLIP compares with a text's."""
        pixels = ((images + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("std")
        hidden = self.tower.vision_model(pixel_values=pixels).last_hidden_state
        states: Tensor = self.tower.visual_projection(self.tower.vision_model.post_layernorm(hidden))
        return states[:, 1:], states[:, 0]

    def load(self, folder: Path) -> None:
        """Take the weights of the CLIP in ``folder``.

        Raises:
            UserError: its weights are no safetensors, damaged, or of another shape than its configuration says.
        """
        own = self.tower.state_dict()
        try:
            found = load_file(folder / WEIGHTS_FILE)
            self.tower.load_state_dict({name: tensor for name, tensor in found.items() if name in own})
        except (OSError, SafetensorError, RuntimeError) as error:
            problem = str(error).strip().splitlines()[-1].strip()
            raise UserError(
                f"cannot take the image tower of {folder}: {problem}",
                f"Give a CLIP whose weights are in {WEIGHTS_FILE}",
            ) from error


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the hash by which a word-crop store names its image tower.

    Args:
        tensors: of a :class:`ClipEncoder`, by name; others may stand among them.
    """
    own = "tower."
    return hash_tensors(
        (name.removeprefix(own), tensor.float().cpu().contiguous().numpy())
        for name, tensor in tensors.items()
        if name.startswith(own)
    )


def whole_hash(folder: Path) -> str:
    """Return the hash by which prompt stores and ORP banks name the CLIP in ``folder``: of both its towers.

    Raises:
        UserError: its weights are no safetensors, or damaged.
    """
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        names = CLIPModel(CLIPConfig.from_pretrained(folder)).state_dict().keys()
    try:
        found = load_file(folder / WEIGHTS_FILE)
        return hash_tensors((name, found[name].float().contiguous().numpy()) for name in names)
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(
            f"cannot read the weights of {folder}: {error}", f"Give a CLIP whose weights are in {WEIGHTS_FILE}"
        ) from error


def describe(folder: Path) -> str:
    """Return the configuration of the image tower in ``folder``, as the recipe keeps it.

    Raises:
        UserError: the model is not a CLIP.
    """
    config = json.loads((folder / MODEL_CONFIG_FILE).read_text(encoding="utf-8"))
    if config.get("model_type") != "clip":
        raise UserError(f"{folder} holds a {config.get('model_type')} model", "encoder.kind = clip:… takes a CLIP")
    preparation = folder / IMAGE_PROCESSOR_FILE
    pixels = json.loads(preparation.read_text(encoding="utf-8")) if preparation.is_file() else {}
    vision = {
        **config.get("vision_config", {}),
        "projection_dim": config.get("projection_dim", 512),
        "image_mean": pixels.get("image_mean", _MEAN),
        "image_std": pixels.get("image_std", _STD),
    }
    return json.dumps(vision, sort_keys=True)
