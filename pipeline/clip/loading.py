"""CLIP, loaded once by one path, for both towers.

They come from the same files and carry the same weights hash, which is how a prompt store and an ORP bank know that
they belong together. A family of models is supported when its two towers are named and joined as CLIP's are; what
differs otherwise stands in one table.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dptr.cache.errors import UserError
from dptr.pipeline.choices import Precision
from dptr.pipeline.clip.clip_files import find_clip

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass(frozen=True)
class _Family:
    """What sets one kind of model apart: how it reads pictures, and which token of a prompt is its pooled one."""

    image_processor: str
    pooled_token: Literal["first", "last"]


_FAMILIES = {
    "clip": _Family("CLIPImageProcessorPil", "last"),
    "metaclip_2": _Family("CLIPImageProcessorPil", "last"),
    "chinese_clip": _Family("ChineseCLIPImageProcessorPil", "first"),
}


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP with its tokenizer and image processor.

    Attributes:
        name: what the user asked for (``tiny``, a path or a hub id).
        model: in evaluation mode, in the precision asked for.
        pooled_token: the token whose state, projected, is a prompt's pooled vector.
        tokenizer: transformers tokenizer; a call gives ``input_ids`` with begin and end tokens.
        image_processor: transformers' PIL image processor.
        weights: SHA-256 over all weights as loaded in float32, whatever file they came from.
        tokenizer_hash: SHA-256 over the tokenizer's vocabulary, merges and rules.
        load_seconds: how long loading took.
    """

    name: str
    model: Any  # a CLIPModel or its like; annotations inside transformers do not pass a strict check
    pooled_token: Literal["first", "last"]
    tokenizer: Any
    image_processor: Any
    weights: str
    tokenizer_hash: str
    load_seconds: float

    @property
    def device(self) -> Any:
        """Where the model lives."""
        return self.model.device

    def identity(self) -> dict[str, str]:
        """What a store has to remember of its encoder."""
        return {"encoder": self.name, "weights": self.weights}


def load_clip(name: str, precision: Precision = "fp32", device: str = "cpu") -> Clip:
    """Load a CLIP.

    Args:
        name: ``tiny``, a directory that transformers saved, or a hub id such as ``openai/clip-vit-base-patch16``.
        precision: the arithmetic of both towers.
        device: a torch device.

    Raises:
        UserError: not found (or no network), of a family that is not supported, or not loadable.
    """
    started = time.monotonic()
    import torch
    import transformers
    from safetensors import SafetensorError

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    folder = find_clip(name)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            family = _family(name, transformers.AutoConfig.from_pretrained(folder).model_type)
            model, loading = transformers.AutoModel.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            image_processor = getattr(transformers, family.image_processor).from_pretrained(folder)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _cannot_load(name, str(error).strip().splitlines()[0]) from error
    if loading["missing_keys"]:
        # transformers draws what is missing at random.
        raise _cannot_load(name, f"its weights lack {min(loading['missing_keys'])}")
    weights = weights_hash(model)
    model.train(False).requires_grad_(False)
    torch.nn.Module.to(model, device, torch.bfloat16 if precision == "bf16" else torch.float32)
    return Clip(
        name=name,
        model=model,
        pooled_token=family.pooled_token,
        tokenizer=tokenizer,
        image_processor=image_processor,
        weights=weights,
        tokenizer_hash=_tokenizer_hash(tokenizer),
        load_seconds=time.monotonic() - started,
    )


def _cannot_load(name: str, problem: str) -> UserError:
    return UserError(f"cannot load CLIP {name!r}: {problem}", "Give a directory with all of the model's files")


def _family(name: str, model_type: str) -> _Family:
    if model_type not in _FAMILIES:
        raise UserError(f"{name} is a model of type {model_type!r}", f"Supported are {', '.join(_FAMILIES)}")
    return _FAMILIES[model_type]


def weights_hash(model: torch.nn.Module) -> str:
    """Return the SHA-256 over the names, shapes and values of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


class ImageTower:
    """CLIP's image side: pictures to token states and pooled vectors in the joint space."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._model = clip.model
        config = clip.model.config.vision_config
        self.tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.dim = int(clip.model.config.projection_dim)

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        """Resize, crop and normalise one picture as its CLIP expects, shape (3, height, width)."""
        pixels = self._clip.image_processor(images=image.convert("RGB"), return_tensors="np")["pixel_values"][0]
        return np.asarray(pixels, dtype=np.float32)

    def encode(self, pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Encode pictures.

        All tokens pass through the final layer norm and the projection, as in the authors' code; CLIP itself does that
        with the class token only, which is the pooled vector.

        Args:
            pixels: shape (batch, 3, height, width).

        Returns:
            token states (batch, tokens, dim) and pooled vectors (batch, dim), float32.
        """
        import torch

        with torch.inference_mode():
            inputs = torch.from_numpy(pixels).to(self._clip.device, self._model.dtype)
            hidden = self._model.vision_model(pixel_values=inputs).last_hidden_state
            projected = self._model.visual_projection(self._model.vision_model.post_layernorm(hidden))
            tokens = projected.float().cpu().numpy()
        return tokens, tokens[:, 0].copy()


def _tokenizer_hash(tokenizer: Any) -> str:
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # Padding and truncation are call settings that change with use, not part of what the tokenizer is.
    rules.pop("padding", None)
    rules.pop("truncation", None)
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
