"""CLIP's own image encoder: word images become tokens in the space of the stores' embeddings.

Tokens pass through the final layer norm and the projection, as those of an ORP bank do. The recipe carries the image
encoder's configuration once it is resolved, so that a run can be loaded without the CLIP that it started from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import IMAGE_PROCESSOR_FILE, MODEL_CONFIG_FILE, WEIGHTS_FILE
from dptr.pipeline.clip import loading
from dptr.pipeline.clip.clip_files import hash_tensors
from dptr.pipeline.clip.families import FAMILIES, Family
from dptr.trainer.model.encoders.base import PretrainedEncoder
from dptr.trainer.recipe import EncoderSettings

PREFIX = "clip:"
# CLIP's published normalisation, in units of [0, 1], for a model that comes without its own.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class _ImageModel(nn.Module):
    """An image encoder whose weights have the names that they have in the whole model's files."""

    def __init__(self, family: Family, config: Any, dim: int) -> None:
        super().__init__()
        import transformers

        self.config = SimpleNamespace(vision_config=config)
        self.vision_model: Any = getattr(transformers, f"{family.vision}Model")(config)
        if _is_projected(family):
            self.visual_projection = nn.Linear(config.hidden_size, dim, bias=False)


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
        self._family = FAMILIES[described.pop("family", "clip")]
        config: Any = getattr(transformers, f"{self._family.vision}Config")(**described)
        self.dim = int(described["projection_dim"] if _is_projected(self._family) else config.hidden_size)
        # Weights of runs and model files carry this name.
        self.encoder = _ImageModel(self._family, config, self.dim)
        pixels = self._family.image_side_length(self.encoder)
        self.size = (pixels, pixels)
        self.grid = (pixels // config.patch_size, pixels // config.patch_size)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (batch, 3, height, width) in [-1, 1] to tokens (batch, tokens, dim), row by row."""
        return self.tokens_and_pooled(images)[0]

    def tokens_and_pooled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images as above to tokens, and to the vectors (batch, dim) that CLIP compares with a text's."""
        pixels = ((images + 1) / 2 - self.get_buffer("mean")) / self.get_buffer("std")
        tokens, pooled = self._family.image_embeddings(self.encoder, pixels)
        return tokens[:, self._family.class_tokens :], pooled

    def load(self, folder: Path) -> None:
        """Take the weights of the CLIP in ``folder``.

        Raises:
            UserError: its weights are no safetensors, damaged, or of another shape than its configuration says.
        """
        own = self.encoder.state_dict()
        found = loading.load_model(folder)[1].state_dict()
        try:
            self.encoder.load_state_dict({name: tensor for name, tensor in found.items() if name in own})
        except RuntimeError as error:
            problem = str(error).strip().splitlines()[-1].strip()
            raise UserError(
                f"cannot load the weights of {folder}: {problem}", f"Give a CLIP whose weights are in {WEIGHTS_FILE}"
            ) from error


def weights_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the hash by which an image-feature store names its image encoder.

    Args:
        tensors: of a :class:`ClipEncoder`, by name; others may stand among them.
    """
    own = "encoder."
    return hash_tensors(
        (name.removeprefix(own), tensor.float().cpu().contiguous().numpy())
        for name, tensor in tensors.items()
        if name.startswith(own)
    )


def whole_hash(folder: Path) -> str:
    """Return the hash by which prompt stores and ORP banks name the CLIP in ``folder``: of both its encoders.

    Raises:
        UserError: its weights are no safetensors, or damaged.
    """
    return loading.weights_hash(loading.load_model(folder)[1])


def require_weights(folder: Path, clip: str, expected: str, run: str) -> None:
    """Check that the CLIP in ``folder``, found by its name, is the one that embedded the text of a run.

    Args:
        clip, run: names for people. expected: hash by which the run's prompt store names the CLIP.

    Raises:
        UserError: its weights are no safetensors, or damaged. DamagedStore: it has others.
    """
    if whole_hash(folder) != expected.rpartition("+")[2]:  # of a pair, the image encoder's stands last
        raise DamagedStore(
            f"the CLIP {clip} has other weights than the one that embedded the text of {run}",
            "Restore that CLIP, or embed the text again with this one and pre-train",
        )


def describe(folder: Path) -> str:
    """Return the configuration of the image encoder in ``folder``, as the recipe keeps it.

    Raises:
        UserError: the model is not a CLIP.
    """
    from transformers import AutoConfig

    config = json.loads((folder / MODEL_CONFIG_FILE).read_text(encoding="utf-8"))
    name = config.get("model_type")
    if name not in FAMILIES:
        raise UserError(f"{folder} holds a {name} model", f"encoder.kind = clip:… takes {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    preparation = folder / IMAGE_PROCESSOR_FILE
    pixels = json.loads(preparation.read_text(encoding="utf-8")) if preparation.is_file() else {}
    vision = {**config.get("vision_config", {}), **({} if name == "clip" else {"family": name})}
    if _is_projected(family):
        whole = SimpleNamespace(config=AutoConfig.from_pretrained(folder, trust_remote_code=False))
        vision["projection_dim"] = family.joint_dim(whole)
    vision["image_mean"] = pixels.get("image_mean", _MEAN if _is_projected(family) else [0.5] * 3)
    vision["image_std"] = pixels.get("image_std", _STD if _is_projected(family) else [0.5] * 3)
    return json.dumps(vision, sort_keys=True)


def _is_projected(family: Family) -> bool:
    """Return whether a linear layer takes tokens to the joint space; SigLIP's image encoder has a head instead."""
    return any(name.startswith("visual_projection") for name in family.image_side)
