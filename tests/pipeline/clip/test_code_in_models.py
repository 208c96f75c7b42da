"""Code that comes with a model never runs, whatever answer waits on standard input."""

from __future__ import annotations

import ast
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dptr.cache.errors import UserError
from dptr.pipeline.clip.bundled import BUNDLED
from dptr.pipeline.clip.loading import load_clip
from dptr.trainer.model.encoders import build_encoder, describe
from dptr.trainer.model.encoders.transformers_model import TransformersEncoder
from dptr.trainer.recipe import EncoderSettings

ROOT = Path(__file__).resolve().parents[3]
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoBackbone", "AutoTokenizer", "AutoImageProcessor")


@pytest.fixture(name="trace")
def _trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that the code in a model would write."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    return tmp_path / "it_ran"


def add_code(folder: Path, trace: Path, changes: dict[str, Any]) -> None:
    """Let every file of a model that may name classes name those of a module which writes ``trace``."""
    (folder / "custom.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n"
        "from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast\n"
        "class C(PretrainedConfig): model_type = 'custom'\n"
        "class M(PreTrainedModel): config_class = C\n"
        "class T(PreTrainedTokenizerFast): pass\n"
    )
    named = {name: "custom.C" if name == "AutoConfig" else "custom.M" for name in AUTO_CLASSES}
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        path = folder / name
        described = json.loads(path.read_text()) if path.is_file() else {}
        described |= {"auto_map": {**named, "AutoTokenizer": [None, "custom.T"]}}
        path.write_text(json.dumps(described | (changes if name == "config.json" else {})))


def test_of_an_encoder_of_transformers(tmp_path: Path, trace: Path) -> None:
    (tmp_path / "model").mkdir()
    add_code(tmp_path / "model", trace, {"model_type": "custom", "image_size": 32})
    with pytest.raises(UserError):
        describe(f"hf:{tmp_path / 'model'}", tmp_path / "model")
    assert not trace.exists()


@pytest.mark.parametrize("model_type", ["vit", "custom"])
def test_of_an_encoder_in_a_recipe(tmp_path: Path, trace: Path, model_type: str) -> None:
    """A recipe carries the encoder's configuration, and so do runs and model files."""
    (tmp_path / "model").mkdir()
    add_code(tmp_path / "model", trace, {})
    model = {
        "model_type": model_type,
        "auto_map": dict.fromkeys(AUTO_CLASSES, f"{tmp_path / 'model'}--custom.M"),
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "image_size": 32,
        "patch_size": 16,
    }
    described = {"model": model, "size": [32, 32], "rescale_factor": 1 / 255, "image_mean": [0.5], "image_std": [0.5]}
    settings = EncoderSettings(kind="hf:somewhere", config=json.dumps(described))
    if model_type == "custom":
        with pytest.raises(UserError, match="hf:somewhere cannot be built"):
            build_encoder(settings)
    else:
        assert isinstance(build_encoder(settings), TransformersEncoder)
    assert not trace.exists()


def test_of_a_clip(tmp_path: Path, trace: Path) -> None:
    shutil.copytree(BUNDLED, tmp_path / "clip")
    add_code(tmp_path / "clip", trace, {})
    assert load_clip(str(tmp_path / "clip")).weights == load_clip("tiny").weights
    assert not trace.exists()


@pytest.mark.parametrize("model_type", ["distilbert", "altclip_text_model"])
def test_of_a_text_encoder(
    tmp_path: Path, trace: Path, small_clip: Callable[[str], str], capsys: pytest.CaptureFixture[str], model_type: str
) -> None:
    """The second type is one that the library has a configuration for, and no model to build from that alone."""
    folder = shutil.copytree(small_clip("sentence").removesuffix("+tiny"), tmp_path / "text")
    add_code(folder, trace, {"model_type": model_type})
    if model_type == "distilbert":
        load_clip(f"{folder}+tiny")
    else:
        with pytest.raises(UserError, match="text"):
            load_clip(f"{folder}+tiny")
    assert not trace.exists()
    assert "[y/N]" not in capsys.readouterr().out


def test_every_call_of_the_library_forbids_it() -> None:
    calls = [
        (path, node)
        for top in ("cache", "pipeline", "trainer")
        for path in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("from_pretrained", "from_config")
    ]
    assert len(calls) >= 8
    for path, call in calls:
        said = {keyword.arg: keyword.value for keyword in call.keywords}.get("trust_remote_code")
        assert isinstance(said, ast.Constant), f"{path}:{call.lineno}"
        assert said.value is False, f"{path}:{call.lineno}"
