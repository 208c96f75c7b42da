"""CLIP, loaded once by one path: the bundled model, a directory in transformers' format, or a hub id.

Both towers come from the same files and carry the same weights hash, which is how a prompt store and an ORP bank know
that they belong together.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dptr.cache.errors import UserError
from dptr.pipeline import bundled_clip

if TYPE_CHECKING:
    import torch
    from PIL import Image


Precision = Literal["fp32", "bf16"]
_SECONDS_FOR_THE_HUB = 10.0


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP with its tokenizer and image processor.

    Attributes:
        name: what the user asked for (``tiny``, a path or a hub id).
        model: in evaluation mode, in the precision asked for.
        tokenizer: transformers tokenizer; a call gives ``input_ids`` with begin and end tokens.
        image_processor: transformers' PIL image processor.
        weights: SHA-256 over all weights as loaded in float32, whatever file they came from.
        tokenizer_hash: SHA-256 over the tokenizer's vocabulary, merges and rules.
        load_seconds: how long loading took.
    """

    name: str
    model: Any  # a CLIPModel; annotations inside transformers do not pass a strict check
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


def load_clip(name: str, models: Path, precision: Precision = "fp32", device: str = "cpu") -> Clip:
    """Load a CLIP.

    Args:
        name: ``tiny``, a directory that transformers saved, or a hub id such as ``openai/clip-vit-base-patch16``.
        models: where the bundled model is unpacked.
        precision: the arithmetic of both towers.
        device: a torch device.

    Raises:
        UserError: not found (or no network), not a CLIP, or not loadable.
    """
    started = time.monotonic()
    import torch
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    source: str | Path = bundled_clip.materialize(models) if name == bundled_clip.NAME else name
    if _looks_like_hub_id(str(source)):
        _require_reachable(name)
    else:
        _require_directory(Path(source))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            config = transformers.AutoConfig.from_pretrained(source)
            if config.model_type != "clip":
                raise UserError(
                    f"{name} is a model of type {config.model_type!r}, not a CLIP", "Use a CLIP in transformers' format"
                )
            model = transformers.CLIPModel.from_pretrained(source, dtype=torch.float32)
            tokenizer = transformers.AutoTokenizer.from_pretrained(source)
            image_processor = transformers.CLIPImageProcessorPil.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"cannot load CLIP {name!r}: {_first_line(error)}",
            "Give a directory with the model's files, check the network, or use --clip tiny",
        ) from error
    weights = weights_hash(model)
    model.train(False).requires_grad_(False)
    torch.nn.Module.to(model, device, torch.bfloat16 if precision == "bf16" else torch.float32)
    loaded = time.monotonic() - started
    return Clip(name, model, tokenizer, image_processor, weights, _tokenizer_hash(tokenizer), loaded)


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


def _looks_like_hub_id(name: str) -> bool:
    return name.count("/") <= 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


def _require_reachable(hub_id: str) -> None:
    """Ask the hub once for a model that is not in its local cache: loading would ask again and again for minutes."""
    import huggingface_hub

    if isinstance(huggingface_hub.try_to_load_from_cache(hub_id, "config.json"), str):
        return
    try:
        huggingface_hub.HfApi().model_info(hub_id, timeout=_SECONDS_FOR_THE_HUB)
    except Exception as error:  # the hub's client raises its own errors and those of whatever HTTP library it uses
        raise UserError(
            f"CLIP {hub_id!r} is neither a directory nor in the local cache, and the hub does not give it "
            f"({_first_line(error)})",
            "Check the name and the network, give a directory with the model's files, or use --clip tiny",
        ) from error


def _require_directory(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no CLIP (no config.json)", "Give a directory saved by transformers, a hub id, or `tiny`"
        )


def _tokenizer_hash(tokenizer: Any) -> str:
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # Padding and truncation are call settings that change with use, not part of what the tokenizer is.
    rules.pop("padding", None)
    rules.pop("truncation", None)
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
