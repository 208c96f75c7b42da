"""Vision models of transformers as encoders (``hf:`` and a folder or hub id).

Tokens are the last feature map where transformers has the model as a backbone, and otherwise its last hidden state
without class, register and distillation tokens. The recipe carries the model's configuration and
how its pictures are prepared once it is resolved, so that a run can be loaded without the model.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dptr.cache.errors import UserError
from dptr.cache.file_names import IMAGE_PROCESSOR_FILE, MODEL_CONFIG_FILE, WEIGHTS_FILE
from dptr.trainer.model.encoders.base import PretrainedEncoder
from dptr.trainer.recipe import EncoderSettings

PREFIX = "hf:"
_KINDS = "encoder.kind = hf:… takes a vision model of transformers"
#: Weights that a checkpoint of another head may lack: norms after a backbone start as the identity, the others serve
#: classification and masked training and are not used here.
_DISPENSABLE = ("hidden_states_norms", "pooler", "mask_token")


class TransformersEncoder(PretrainedEncoder):
    """Word images to the tokens of a vision model of transformers."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        if not settings.config:
            raise UserError(f"encoder.kind = {settings.kind!r} needs its configuration", "Start with `dptr finetune`")
        described = json.loads(settings.config)
        height, width = described["size"]
        self.size = (height, width)
        # Pixels in [0, 255] times this factor are in the units of mean and deviation.
        self._factor = float(described["rescale_factor"])
        self.register_buffer("mean", torch.tensor(described["image_mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(described["image_std"]).view(-1, 1, 1), persistent=False)
        self._kind = settings.kind
        self.model: Any = _build(settings.kind, described["model"])
        self.grid, self.dim = self._measure()

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (batch, 3, height, width) in [-1, 1] to tokens (batch, tokens, dim), row by row."""
        return self._embeddings(images)[:, -self.grid[0] * self.grid[1] :]

    def load(self, folder: Path) -> None:
        """Take the weights of the model in ``folder``.

        Raises:
            UserError: its weights are no safetensors, damaged, or of another shape than its configuration says.
        """
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                found, loading = type(self.model).from_pretrained(
                    folder,
                    config=self.model.config,
                    use_safetensors=True,
                    output_loading_info=True,
                    trust_remote_code=False,
                )
            missing = [name for name in loading["missing_keys"] if not any(part in name for part in _DISPENSABLE)]
            if missing:
                raise ValueError(f"its weights lack {min(missing)}")
            self.model.load_state_dict(found.state_dict())
        # What a damaged file makes the library raise is any of a dozen types, most of them not its own.
        except Exception as error:
            raise UserError(
                f"cannot load the weights of {folder}: {_last_line(error)}",
                f"Give a model whose weights are in {WEIGHTS_FILE}",
            ) from error

    def _embeddings(self, images: Tensor) -> Tensor:
        """Return all embeddings (batch, embeddings, dim) of images (batch, 3, height, width), the grid's last."""
        embeddings = self._map_or_embeddings(images)
        return embeddings.flatten(2).transpose(1, 2) if embeddings.dim() == 4 else embeddings

    def _map_or_embeddings(self, images: Tensor) -> Tensor:
        """Return a feature map (batch, dim, rows, columns) or embeddings (batch, embeddings, dim)."""
        pixels = ((images + 1) * 127.5 * self._factor - self.get_buffer("mean")) / self.get_buffer("std")
        out = self.model(pixel_values=pixels)
        found: Tensor = out.feature_maps[-1] if hasattr(out, "feature_maps") else out.last_hidden_state
        return found

    def _measure(self) -> tuple[tuple[int, int], int]:
        """Return the grid (rows, columns) and the width of the tokens, by encoding one black image."""
        self.model.eval()
        try:
            with torch.inference_mode():
                embeddings = self._map_or_embeddings(torch.full((1, 3, *self.size), -1.0))
        except Exception as error:
            raise UserError(f"{self._kind} encodes no {self.size} image: {_last_line(error)}", _KINDS) from error
        finally:
            self.model.train()
        if embeddings.dim() == 4:
            return (embeddings.shape[2], embeddings.shape[3]), embeddings.shape[1]
        patch = getattr(self.model.config, "patch_size", None)
        if patch is None:
            raise UserError(f"{self._kind} does not state the layout of its tokens (no patch_size)", _KINDS)
        across, down = (patch, patch) if isinstance(patch, int) else (patch[1], patch[0])
        grid = (self.size[0] // down, self.size[1] // across)
        if embeddings.dim() != 3 or embeddings.shape[1] < grid[0] * grid[1]:
            raise UserError(
                f"{self._kind} gives embeddings of shape {tuple(embeddings.shape)}, not the grid {grid}", _KINDS
            )
        return grid, embeddings.shape[2]


def describe(folder: Path) -> str:
    """Return the configuration of the model in ``folder`` and how its pictures are prepared, as the recipe keeps it.

    Raises:
        UserError: there is no such model, or transformers does not support it.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        path = folder / IMAGE_PROCESSOR_FILE
        pixels = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except Exception as error:
        raise UserError(f"{folder / MODEL_CONFIG_FILE} cannot be used: {_last_line(error)}", _KINDS) from error
    channels = getattr(config, "num_channels", 3)
    is_normalized = pixels.get("do_normalize", True)
    described = {
        "model": json.loads(config.to_json_string()),
        "size": _size(pixels, config, folder),
        "rescale_factor": pixels.get("rescale_factor", 1 / 255) if pixels.get("do_rescale", True) else 1.0,
        "image_mean": pixels.get("image_mean", [0.5] * channels) if is_normalized else [0.0] * channels,
        "image_std": pixels.get("image_std", [0.5] * channels) if is_normalized else [1.0] * channels,
    }
    return json.dumps(described, sort_keys=True)


def _size(pixels: dict[str, Any], config: Any, folder: Path) -> tuple[int, int]:
    """Return (height, width) in pixels: what pictures are cut to, or else resized to, or else the model's own size."""
    for asked in (pixels.get("crop_size"), pixels.get("size"), getattr(config, "image_size", None)):
        match asked:
            case int():
                return asked, asked
            case {"height": int(height), "width": int(width)}:
                return height, width
            case {"shortest_edge": int(side)}:
                return side, side
            case [int(height), int(width)]:
                return height, width
    raise UserError(
        f"{folder} states no image size, neither in {IMAGE_PROCESSOR_FILE} nor in its configuration", _KINDS
    )


def _build(kind: str, described: dict[str, Any]) -> Any:
    """Make the model with random weights: as a backbone where transformers has one for it."""
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = transformers.AutoConfig.for_model(**described)
        try:
            return transformers.AutoBackbone.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
        except ValueError:  # what transformers has no backbone for
            return transformers.AutoModel.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise UserError(f"{kind} cannot be built: {_last_line(error)}", _KINDS) from error


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
