"""CLIP's own image tower as the encoder: word images become tokens in the space of the stores' states.

Tokens pass through the final layer norm and the projection, as those of an ORP bank do. The recipe carries the tower's
configuration once it is resolved, so that a run can be read where the CLIP it started from is not at hand.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dptr.cache.errors import UserError
from dptr.cache.file_names import IMAGE_PROCESSOR_FILE, MODEL_CONFIG_FILE, WEIGHTS_FILE
from dptr.cache.tensor_hash import hash_tensors
from dptr.trainer.model.encoders.base import PretrainedEncoder
from dptr.trainer.training.settings import EncoderSettings

PREFIX = "clip:"
#: Where a configuration leaves it out; 512 in all others.
_JOINT_WIDTHS = {"altclip": 768}
# CLIP's published normalisation, in units of [0, 1], for a model that comes without its own.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


#: What transformers calls the image towers of the kinds of CLIP that stage 1 takes, by ``model_type``.
_TOWERS = {
    "clip": "CLIPVision",
    "metaclip_2": "MetaClip2Vision",
    "chinese_clip": "ChineseCLIPVision",
    "altclip": "AltCLIPVision",
    "siglip": "SiglipVision",
    "siglip2": "Siglip2Vision",
}


class _Tower(nn.Module):
    """An image tower whose weights have the names that they have in the whole model's files."""

    def __init__(self, family: str, config: Any, dim: int) -> None:
        super().__init__()
        import transformers

        self.vision_model: Any = getattr(transformers, f"{_TOWERS[family]}Model")(config)
        # SigLIP's towers take their tokens to the joint space by their own head.
        self.visual_projection = None if _is_siglip(family) else nn.Linear(config.hidden_size, dim, bias=False)


class ClipEncoder(PretrainedEncoder):
    """Word images to tokens; a class token is left out, as it has no position in the image.

    Attributes:
        dim: width of the joint space. size: (height, width) of the images it takes. grid: (rows, columns) of tokens.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        import transformers

        if not settings.config:
            raise UserError(f"encoder.kind = {settings.kind!r} needs its configuration", "Start with `dptr finetune`")
        described = json.loads(settings.config)
        mean, std = described.pop("image_mean"), described.pop("image_std")
        self._family = described.pop("family", "clip")
        config: Any = getattr(transformers, f"{_TOWERS[self._family]}Config")(**described)
        self.dim = int(config.hidden_size if _is_siglip(self._family) else described["projection_dim"])
        self.tower = _Tower(self._family, config, self.dim)
        self._patch = int(config.patch_size)
        # SigLIP 2 takes any shape of so many patches; here it is a square.
        side = int(config.num_patches**0.5) if self._family == "siglip2" else config.image_size // self._patch
        size = side * self._patch if self._family == "siglip2" else config.image_size
        self.size = (size, size)
        self.grid = (side, side)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (batch, 3, height, width) in [-1, 1] to tokens (batch, tokens, dim), row by row."""
        return self.tokens_and_pooled(images)[0]

    def tokens_and_pooled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images as above to tokens, and to the vectors (batch, dim) that CLIP compares with a text's."""
        pixels = ((images + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("std")
        model = self.tower.vision_model
        output = model(**(self._patches(pixels) if self._family == "siglip2" else {"pixel_values": pixels}))
        hidden: Tensor = output.last_hidden_state
        if self.tower.visual_projection is None:
            # The attention that pools all tokens, over each token alone.
            return model.head(hidden.flatten(0, 1)[:, None]).view_as(hidden), output.pooler_output
        states: Tensor = self.tower.visual_projection(model.post_layernorm(hidden))
        return states[:, 1:], states[:, 0]

    def _patches(self, pixels: Tensor) -> dict[str, Tensor]:
        batch, patches = len(pixels), self.grid[0] * self.grid[1]
        cut = pixels.unfold(2, self._patch, self._patch).unfold(3, self._patch, self._patch)
        return {
            "pixel_values": cut.permute(0, 2, 3, 4, 5, 1).reshape(batch, patches, -1),
            "pixel_attention_mask": torch.ones(batch, patches, dtype=torch.long, device=pixels.device),
            "spatial_shapes": torch.tensor([self.grid] * batch, device=pixels.device),
        }

    def load(self, folder: Path) -> None:
        """Take the weights of the CLIP in ``folder``.

        Raises:
            UserError: its weights are no safetensors, damaged, or of another shape than its configuration says.
        """
        own = self.tower.state_dict()
        found = _whole_model(folder)
        try:
            self.tower.load_state_dict({name: tensor for name, tensor in found.items() if name in own})
        except RuntimeError as error:
            raise _cannot_take(folder, error) from error


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
    return hash_tensors((name, tensor.contiguous().numpy()) for name, tensor in _whole_model(folder).items())


def _whole_model(folder: Path) -> dict[str, Tensor]:
    """Return a CLIP's weights in float32, by the names that transformers has for them, whatever a file calls them."""
    import transformers

    try:
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        with contextlib.redirect_stderr(io.StringIO()):
            model, told = transformers.AutoModel.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
        if told["missing_keys"]:
            raise ValueError(f"its weights lack {min(told['missing_keys'])}")
    # What a damaged file makes the library raise is any of a dozen types, most of them not its own.
    except Exception as error:
        raise _cannot_take(folder, error) from error
    weights: dict[str, Tensor] = model.state_dict()
    return weights


def _cannot_take(folder: Path, error: Exception) -> UserError:
    problem = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
    return UserError(
        f"cannot take the weights of {folder}: {problem}", f"Give a CLIP whose weights are in {WEIGHTS_FILE}"
    )


def describe(folder: Path) -> str:
    """Return the configuration of the image tower in ``folder``, as the recipe keeps it.

    Raises:
        UserError: the model is not a CLIP.
    """
    config = json.loads((folder / MODEL_CONFIG_FILE).read_text(encoding="utf-8"))
    family = config.get("model_type")
    if family not in _TOWERS:
        raise UserError(f"{folder} holds a {family} model", f"encoder.kind = clip:… takes {', '.join(_TOWERS)}")
    width = _JOINT_WIDTHS.get(family, 512)
    preparation = folder / IMAGE_PROCESSOR_FILE
    pixels = json.loads(preparation.read_text(encoding="utf-8")) if preparation.is_file() else {}
    vision = {
        **config.get("vision_config", {}),
        **({} if _is_siglip(family) else {"projection_dim": config.get("projection_dim", width)}),
        **({} if family == "clip" else {"family": family}),
        "image_mean": pixels.get("image_mean", [0.5] * 3 if _is_siglip(family) else _MEAN),
        "image_std": pixels.get("image_std", [0.5] * 3 if _is_siglip(family) else _STD),
    }
    return json.dumps(vision, sort_keys=True)


def _is_siglip(family: str) -> bool:
    return family.startswith("siglip")
