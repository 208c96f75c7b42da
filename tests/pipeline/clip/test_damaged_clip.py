"""A CLIP whose files are damaged, unsafe or do not fit each other is told in one line, and which of them it is."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dptr.cache.errors import UserError
from dptr.pipeline.clip.bundled import BUNDLED
from dptr.pipeline.clip.loading import load_clip

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


def another_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
    "no words": (content("tokenizer.json", b"{}"), "its tokenizer cannot be read"),
    "tokenizer": (content("tokenizer.json", b"{oops"), "its tokenizer cannot be read"),
    "list": (content("tokenizer.json", b"[]"), "its tokenizer cannot be read"),
    "bytes": (content("tokenizer.json", b"\xff\xfe\0"), "its tokenizer cannot be read"),
    "tokenizer's settings": (content("tokenizer_config.json", b"[]"), "its tokenizer cannot be read"),
    "pictures": (content("preprocessor_config.json", b"{oops"), "its image processor cannot be read"),
    "config": (content("config.json", b"{oops"), "its configuration cannot be read"),
    "heads": (text_config(num_attention_heads=3), "its configuration cannot be read .*heads"),
    "no number": (text_config(hidden_size="wide"), "its configuration cannot be read .*hidden_size"),
    "nothing": (text_config(hidden_size=0), "its weights cannot be read"),
    "activation": (text_config(hidden_act="nope"), "its weights cannot be read .*nope"),
    "width": (text_config(hidden_size=64), r"position_embedding\.weight of shape \(77, 128\), .* says \(77, 64\)"),
    "vocabulary": (text_config(vocab_size=100), r"token_embedding\.weight of shape"),
    "layers": (text_config(num_hidden_layers=1), r"layers\.1\..* a layer that its config.json does not have"),
    "shape": (another_shape, r"text_projection\.weight of shape \(3, 3\)"),
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


def test_weights_are_not_read_from_a_pickle_of_plain_tensors(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED, tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "clip" / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match="pickled weights only"):
        load_clip(str(tmp_path / "clip"))


def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED, tmp_path / "clip")
    config(lambda value: value.update(model_type="evil", auto_map={"AutoConfig": "evil.Evil"}))(tmp_path / "clip")
    (tmp_path / "clip" / "evil.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')")
    with pytest.raises(UserError, match=r"a model of type 'evil'\. Supported are clip,"):
        load_clip(str(tmp_path / "clip"))
    assert not (tmp_path / "exploded").exists()
