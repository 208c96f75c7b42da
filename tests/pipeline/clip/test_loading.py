"""What is no CLIP, or lacks a part of one, is rejected in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dptr.cache.errors import UserError
from dptr.pipeline.clip import bundled as bundled_clip
from dptr.pipeline.clip.loading import load_clip


def test_weights_that_lack_something_are_rejected(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = bundled_clip.BUNDLED
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(source / "model.safetensors")
    weights.pop("text_projection.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"weights lack text_projection\.weight"):
        load_clip(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="cannot load CLIP"):
        load_clip(str(tmp_path))


def test_other_kinds_of_model_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(UserError, match=r"type 'blip'.*Supported are clip, .* siglip2, and .* TEXT\+IMAGE"):
        load_clip(str(tmp_path))
    with pytest.raises(UserError, match="holds no CLIP"):
        load_clip("./missing")


def test_a_hub_id_without_network_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import time

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.__init__", _with_endpoint("http://127.0.0.1:9"))
    started = time.monotonic()
    with pytest.raises(UserError, match=r"not on this machine and the hub cannot be reached"):
        load_clip("someone/some-clip")
    assert time.monotonic() - started < 6.0


def _with_endpoint(endpoint: str) -> Any:
    from huggingface_hub import HfApi

    original = HfApi.__init__

    def start(self: Any, *_: Any, **__: Any) -> None:
        original(self, endpoint=endpoint)

    return start
