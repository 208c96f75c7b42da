"""The bundled CLIP: a CLIP of the usual architecture, small enough to need no download.

It is untrained: weights are drawn from a fixed seed, so text and image states share no meaning. It exercises every
stage with real encoders and real files; for real work use a trained CLIP. NumPy draws the weights, because its
generators give the same numbers on every platform and version, and the weights' hash is part of a store's identity.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

NAME = "tiny"
BUNDLED = Path(__file__).parent / "clip_tiny"
_SEED = 2024
_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


def materialize(models: Path) -> Path:
    """Return a folder under ``models`` with the bundled CLIP as transformers saves it, making it when it is missing."""
    folder = models / "clip-tiny-untrained"
    if not (folder / "model.safetensors").is_file():
        from transformers import CLIPConfig, CLIPModel

        folder.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            shutil.copyfile(BUNDLED / name, folder / name)
        model = CLIPModel(CLIPConfig.from_pretrained(BUNDLED))
        draw_weights(model, _SEED)
        model.save_pretrained(folder)
    return folder


def draw_weights(model: torch.nn.Module, seed: int) -> None:
    """Fill a CLIP with weights drawn from ``seed``: normal with variance 1/fan-in, norms at one, biases at zero."""
    import torch

    generator = np.random.default_rng(seed)
    for name, parameter in sorted(model.named_parameters()):
        if name.endswith("bias"):
            values = np.zeros(parameter.shape)
        elif parameter.ndim == 0:
            continue
        elif parameter.ndim == 1 and "class_embedding" not in name:
            values = np.ones(parameter.shape)
        else:
            fan_in = int(np.prod(parameter.shape[1:])) if parameter.ndim > 1 else parameter.shape[0]
            # Embeddings of unit size drown out what few random attention layers add: tokens stay recognisable.
            scale = 1.0 if "embedding.weight" in name and "patch" not in name else fan_in**-0.5
            values = generator.standard_normal(parameter.shape) * (0.5 * scale if "position" in name else scale)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.asarray(values, dtype=np.float32)))
