"""Encoders that are models of transformers, and encoders that other packages register."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor

from dptr.cache.errors import UserError
from dptr.cache.text.charset import Charset
from dptr.trainer.model.decoders.base import Targets
from dptr.trainer.model.encoders import build_encoder, describe, model_of
from dptr.trainer.model.encoders.transformers_model import TransformersEncoder
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.recipe import EncoderSettings, Recipe

CONFIGS = {
    "convnext": transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], image_size=64),
    "swin": transformers.SwinConfig(
        embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4, image_size=64, drop_path_rate=0.0
    ),
    "vit": transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=64, patch_size=16
    ),
}
GRIDS = {"convnext": (2, 2), "swin": (8, 8), "vit": (4, 4)}
PIXELS = {
    "size": {"height": 64, "width": 64},
    "rescale_factor": 1 / 255,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
}


@pytest.fixture(params=list(CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(3)
    path = tmp_path / str(request.param)
    transformers.AutoModelForImageClassification.from_config(CONFIGS[request.param]).save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    return path


def encoder_of(folder: Path, load: bool = True) -> TransformersEncoder:
    kind = f"hf:{folder}"
    encoder = build_encoder(EncoderSettings(kind=kind, config=describe(kind, folder)))
    assert isinstance(encoder, TransformersEncoder)
    if load:
        encoder.load(folder)
    return encoder.eval()


def picture() -> Image.Image:
    return Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")


def expected_tokens(folder: Path) -> Tensor:
    """Return what transformers itself gives for the picture, prepared by hand as its folder says."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    pixels = (np.asarray(picture()) / 255 - PIXELS["image_mean"]) / PIXELS["image_std"]
    with torch.inference_mode():
        out: Tensor = model(pixel_values=torch.tensor(pixels).permute(2, 0, 1)[None].float()).last_hidden_state
    if folder.name == "vit":
        return out[:, 1:]
    if folder.name == "swin":
        return out
    return F.layer_norm(out.flatten(2).transpose(1, 2), (out.shape[1],), eps=1e-6)


def test_tokens_are_those_of_transformers_row_by_row(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = encoder_of(folder)
    assert capfd.readouterr() == ("", "")
    assert (encoder.size, encoder.grid) == ((64, 64), GRIDS[folder.name])
    images = torch.tensor(np.asarray(picture())).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        tokens = encoder(images)
    assert tokens.shape == (1, encoder.grid[0] * encoder.grid[1], encoder.dim)
    torch.testing.assert_close(tokens, expected_tokens(folder), atol=1e-4, rtol=1e-4)


def test_a_recogniser_on_it_learns_and_is_built_again_without_the_model(folder: Path) -> None:
    kind = f"hf:{folder}"
    recipe = Recipe().replace("encoder", kind=kind, config=describe(kind, folder))
    recipe = recipe.replace("decoder", dim=32, heads=4, feed_forward=32).replace("fmu", queries=4, heads=4)
    charset = Charset("ab")
    model = Recognizer(recipe, charset, 32)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    before = {name: value.clone() for name, value in model.encoder.named_parameters()}
    model.loss(images, Targets.of(["ab", "b"], charset)).backward()
    optimizer.step()
    after = dict(model.encoder.named_parameters())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    shutil.rmtree(folder)
    again = Recognizer(recipe, charset, 32)
    again.load_state_dict(model.state_dict())
    assert [prediction.text for prediction in again.eval().read(images)] == [
        prediction.text for prediction in model.eval().read(images)
    ]


def test_pickled_weights_are_rejected(folder: Path) -> None:
    encoder = encoder_of(folder, load=False)
    torch.save(encoder.model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        encoder.load(folder)


def test_weights_that_are_missing_are_told(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    left_out = next(name for name in weights if "embeddings" in name)
    save_file({name: value for name, value in weights.items() if name != left_out}, path, {"format": "pt"})
    with pytest.raises(UserError, match="its weights lack"):
        encoder_of(folder)


@pytest.mark.parametrize("config", ["{", '{"model_type": "no such"}', '{"model_type": "bert"}'])
def test_what_is_no_vision_model_is_told_in_one_line(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="hf:") as caught:
        encoder_of(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_model_that_an_encoder_starts_from_is_part_of_its_name() -> None:
    assert [model_of(kind) for kind in ("hf:here/it/is", "clip:tiny", "vit")] == ["here/it/is", "tiny", None]


REGISTERED = """
import torch
from torch import Tensor, nn

from dptr.trainer.model.encoders.base import Encoder
from dptr.trainer.recipe import EncoderSettings


class Stripes(Encoder):
    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.dim, self.size, self.grid = settings.dim, (settings.image_height, settings.image_width), (1, 8)
        self.project = nn.LazyLinear(settings.dim)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(images.flatten(1, 2).unflatten(2, (8, -1)).transpose(1, 2).flatten(2))
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "stripes_package.py").write_text(REGISTERED)
    metadata = tmp_path / "stripes_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes_package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[dptr.encoders]\nstripes = stripes_package:Stripes\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "stripes"
    sys.modules.pop("stripes_package", None)


def test_a_package_registers_an_encoder(installed: str) -> None:
    encoder: Any = build_encoder(EncoderSettings(kind=installed, dim=12))
    assert encoder(torch.zeros(2, 3, 32, 128)).shape == (2, 8, 12)
    with pytest.raises(UserError, match="no encoder 'resnet'") as caught:
        build_encoder(EncoderSettings(kind="resnet"))
    assert installed in str(caught.value.advice)
