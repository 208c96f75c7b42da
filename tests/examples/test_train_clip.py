"""A CLIP of one's own at toy size: it learns, resumes, and what is written is a CLIP."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dptr.cache.errors import UserError
from dptr.pipeline.clip.clip_files import BUNDLED
from dptr.pipeline.clip.loading import load_clip
from dptr.pipeline.rendering.render_words import render_words
from dptr.pipeline.rendering.style import CLEAN

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_clip" / "train.py"


@pytest.fixture
def like(tmp_path: Path) -> Path:
    """The bundled model's files with the smallest sizes that make sense."""
    folder = tmp_path / "like"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((BUNDLED / name).read_bytes())
    config = json.loads((BUNDLED / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        config[part] |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        config[part]["projection_dim"] = 32
    config["vision_config"] |= {"image_size": 32, "patch_size": 16}
    config["projection_dim"] = 32
    (folder / "config.json").write_text(json.dumps(config))
    pixels = json.loads((BUNDLED / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**pixels, "size": {"height": 32, "width": 32}}))
    return folder


@pytest.mark.slow
def test_it_learns_and_what_it_writes_is_a_clip(
    tmp_path: Path, like: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    render_words(["street", "market", "hotel", "exit", "open", "closed"], tmp_path / "seen", count=24, style=CLEAN)
    render_words(["south", "bank", "cafe"], tmp_path / "unseen", count=6, style=CLEAN)
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "one.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(SCRIPT.parent)
    script = runpy.run_path(str(SCRIPT))

    def train(*more: str) -> None:
        command = [SCRIPT.name, "--data", "seen", "--validation", "unseen", "--photos", "photos", "--clip", str(like)]
        command += ["-o", "run", "--device", "cpu", "--set", "batch_size=8", "--set", "photos=2"]
        command += ["--set", "precision=fp32", "--set", "log_every=1", "--set", "learning_rate=3e-3", *more]
        monkeypatch.setattr(sys, "argv", command)
        script["main"]()

    train("--steps", "30")
    assert "the right prompt among 3" in capsys.readouterr().out
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    losses = [json.loads(line)["loss"] for line in log.splitlines()]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert load_clip(str(tmp_path / "run" / "clip")).model.config.projection_dim == 32
    train("--steps", "30")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == log, "a finished run takes no further step"
    with pytest.raises(UserError, match="other settings"):
        train("--steps", "31")
    with pytest.raises(UserError, match="--set"):
        train("--set", "batchsize=3")
    train("--steps", "2", "--from", "run/clip", "-o", "second")
    assert "weights" in capsys.readouterr().err
