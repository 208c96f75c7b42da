"""The bundled CLIP: a CLIP of the usual architecture, small enough to need no download.

It is untrained: weights are drawn from a fixed seed, so text and image states share no meaning. It exercises every
stage with real encoders and real files; for real work use a trained CLIP. NumPy draws the weights, because its
generators give the same numbers on every platform and version, and the weights' hash is part of a store's identity.
"""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

NAME = "tiny"
BUNDLED = Path(__file__).parent / "clip_tiny"
_SEED = 2024
_HELD_OUT_ONE_IN = 10
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


def is_held_out(word: str) -> bool:
    """Tell whether training was kept from seeing ``word``, in any case: one in ten, by a hash of its letters."""
    return zlib.crc32(word.lower().encode()) % _HELD_OUT_ONE_IN == 0


def draw_weights(model: torch.nn.Module, seed: int) -> None:
    """Fill a CLIP with weights drawn from ``seed``: normal of the size of :func:`_scale`, norms one, biases zero."""
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
            values = generator.standard_normal(parameter.shape) * _scale(name, fan_in)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.asarray(values, dtype=np.float32)))


def _scale(name: str, fan_in: int) -> float:
    """Standard deviation of one weight's values.

    Untrained layers add nothing but noise to what the embeddings say. They are kept small beside embeddings of unit
    size, so that a token's state still tells which token it is and where it stands, as a trained tower's does.
    """
    if "embedding.weight" in name and "patch" not in name:
        return 0.5 if "position" in name else 1.0
    adds_to_the_stream = "out_proj" in name or "fc2" in name
    return (0.25 if adds_to_the_stream else 1.0) * float(fan_in**-0.5)
