"""What is no CLIP, or lacks a part of one, is rejected in one line."""

from __future__ import annotations

import ast
import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dptr.cache.errors import UserError
from dptr.pipeline.clip.clip_files import BUNDLED, FOLDERS, is_held_out
from dptr.pipeline.clip.loading import ImageEncoder, load_clip
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.rendering.crop import render_one
from dptr.pipeline.rendering.demo_data import standard_library_words
from dptr.pipeline.rendering.fonts import packaged_fonts
from dptr.pipeline.text.templates import Template
from dptr.trainer.model.encoders import build_encoder
from dptr.trainer.model.encoders.transformers_model import TransformersEncoder
from dptr.trainer.recipe import EncoderSettings


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


MEGABYTE = 1e6


@pytest.mark.parametrize("name", ["tiny", "scripts"])
def test_all_its_files_together_are_small_and_described(name: str) -> None:
    folder = FOLDERS[name]
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"} <= names
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12 * MEGABYTE
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert "benchmarks/clip_retrieval.py" in card


def test_nothing_is_shown_while_it_is_loaded(capfd: pytest.CaptureFixture[str]) -> None:
    load_clip("tiny")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_one_word_in_ten_was_kept_from_it_whatever_its_case() -> None:
    words = standard_library_words()
    assert 0.07 < np.mean([is_held_out(word) for word in words]) < 0.13
    assert all(is_held_out(word) == is_held_out(word.upper()) for word in words[:200])


RUSSIAN_AND_GREEK = """
время человек город страна работа школа вопрос музыка письмо дорога станция аптека магазин выход касса ресторан театр
улица площадь вокзал новость книга погода завод сестра χρόνος πόλη δρόμος σχολείο μουσική βιβλίο καιρός θάλασσα νησί
γράμμα δουλειά ερώτηση τραπέζι παράθυρο άνοιξη φαρμακείο είσοδος έξοδος σταθμός πλατεία
"""


def test_it_finds_the_prompt_of_a_word_and_a_font_it_never_saw() -> None:
    assert share_found("tiny", [word for word in standard_library_words() if is_held_out(word)][:200]) > 0.9


def test_the_one_of_seven_scripts_knows_more_than_latin_letters() -> None:
    """Common words, which it has seen; the other one has never seen their letters."""
    assert (
        share_found("scripts", RUSSIAN_AND_GREEK.split()) > 0.8 > 0.3 > share_found("tiny", RUSSIAN_AND_GREEK.split())
    )


def share_found(name: str, words: list[str]) -> float:
    """Return how many of the words' crops find their own prompt first."""
    clip, fonts, rng = load_clip(name), packaged_fonts(), np.random.default_rng(0)
    encoder, images = TextEncoder(clip, Template()), ImageEncoder(clip)
    texts = encoder.encode(encoder.tokenize([Template().prompt(word) for word in words])).pooled
    crops = [render_one(word, fonts.choose(word, rng), rng) for word in words]
    seen = images.encode(np.stack([images.preprocess(crop) for crop in crops]))[1]
    texts, seen = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (texts, seen))
    return float(((seen @ texts.T).argmax(1) == np.arange(len(words))).mean())


Damage = Callable[[Path], Any]


def config(change: Callable[[dict[str, Any]], Any]) -> Damage:
    def apply(folder: Path) -> None:
        value = json.loads((folder / "config.json").read_text())
        change(value)
        (folder / "config.json").write_text(json.dumps(value))

    return apply


def text_config(**values: Any) -> Damage:
    return config(lambda value: value["text_config"].update(values))


def content(name: str, value: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(value)


def projection(weight: torch.Tensor | None) -> Damage:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        del weights["text_projection.weight"]
        more = {} if weight is None else {"text_projection.weight": weight}
        save_file(weights | more, folder / "model.safetensors", {"format": "pt"})

    return apply


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
    "tokenizer": (content("tokenizer.json", b"{oops"), "its tokenizer cannot be read"),
    "tokenizer's settings": (content("tokenizer_config.json", b"[]"), "its tokenizer cannot be read"),
    "pictures": (content("preprocessor_config.json", b"{oops"), "its image processor cannot be read"),
    "config": (content("config.json", b"{oops"), "its configuration cannot be read"),
    "heads": (text_config(num_attention_heads=3), "its configuration cannot be read .*heads"),
    "activation": (text_config(hidden_act="nope"), "its weights cannot be read .*nope"),
    "width": (text_config(hidden_size=64), r"position_embedding\.weight of shape \(77, 128\), .* says \(77, 64\)"),
    "layers": (text_config(num_hidden_layers=1), r"layers\.1\..* a layer that its config.json does not have"),
    "no projection": (projection(None), r"weights lack text_projection\.weight"),
    "shape": (projection(torch.zeros(3, 3)), r"text_projection\.weight of shape \(3, 3\)"),
    "cut short": (content("model.safetensors", b"cut short"), "its weights cannot be read"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, name: str) -> None:
    damage, says = DAMAGES[name]
    shutil.copytree(BUNDLED, tmp_path / "clip")
    damage(tmp_path / "clip")
    with pytest.raises(UserError, match=says) as raised:
        load_clip(str(tmp_path / "clip"))
    assert "\n" not in str(raised.value)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("safe_ones_too", [False, True])
def test_a_pickle_is_never_opened(tmp_path: Path, safe_ones_too: bool) -> None:
    folder, exploded = tmp_path / "clip", tmp_path / "exploded"
    shutil.copytree(BUNDLED, folder)
    torch.save(Bomb(exploded), folder / "pytorch_model.bin", pickle_module=pickle)
    if safe_ones_too:
        load_clip(str(folder))
    else:
        (folder / "model.safetensors").unlink()
        with pytest.raises(UserError, match=r"pickled weights only \(pytorch_model\.bin\).*safetensors"):
            load_clip(str(folder))
    assert not exploded.exists()


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
