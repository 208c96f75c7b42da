"""Arms that need a CLIP: trained from word-crop stores, started from pooled vectors, or read without any label."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dptr.cache.errors import UserError
from dptr.cache.file_names import METRICS_FILE
from dptr.cache.progress import set_quiet
from dptr.cache.workspace import Workspace
from dptr.cli import run_command
from dptr.pipeline.clip.bundled import BUNDLED
from dptr.pipeline.word_crops.embed_crops import EmbedCropsSettings, embed_crops
from dptr.trainer.ablation.ablate import AblationSummary, ablate
from dptr.trainer.ablation.grid import load_grid
from dptr.trainer.ablation.remembered import remember_tests
from dptr.trainer.model.encoders.clip import ClipEncoder, describe
from dptr.trainer.model.recognizer import load_recognizer
from dptr.trainer.training.runs import Run
from dptr.trainer.training.settings import EncoderSettings

WORDS = ["red", "oak", "tin", "sky", "map", "owl", "ice", "bun", "fog", "hut"]
GRID = """
seeds = [1]
base = "plain"
[decoder]
kind = "nrtr"
dim = 32
heads = 2
layers = 1
feed_forward = 32
memory_dim = 128
[fmu]
queries = 4
heads = 2
[noise]
ratio = 0.0
[pretrain]
steps = 2
validation_share = 0.2
batch_size = 4
[finetune]
steps = 2
batch_size = 4
validate_every = 2
checkpoint_every = 2
[data.crops]
path = "{inputs}/crops"
[tests]
signs = "{inputs}/crops"
[arms.plain]
"""


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    set_quiet(True)
    yield
    set_quiet(False)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, draw_crops: Any) -> Path:
    """Ten crops, two stores of them with one and two views, and their words embedded with the bundled CLIP."""
    inputs = tmp_path_factory.mktemp("inputs")
    draw_crops(inputs / "crops", WORDS)
    (inputs / "words.txt").write_text("\n".join(WORDS), encoding="utf-8")
    for views in (1, 2):
        embed_crops([inputs / "crops"], inputs / f"store{views}", EmbedCropsSettings(views=views))
    arguments = ["embed-text", str(inputs / "words.txt"), "--charset", "36", "--case", "lower"]
    assert run_command([*arguments, "--workspace", str(inputs / "workspace"), "--quiet"]) == 0
    return inputs


def run(inputs: Path, folder: Path, more: str, **changes: str) -> AblationSummary:
    text = GRID.replace("{inputs}", str(inputs)) + more
    for old, new in changes.items():
        text = text.replace(old, new)
    path = folder / "grid.toml"
    path.write_text(text, encoding="utf-8")
    return ablate(load_grid(path), "grid", str(path), Workspace(inputs / "workspace"), "cpu")


def trained(inputs: Path, summary: AblationSummary, arm: str) -> Run:
    (row,) = [row for row in summary.rows if row["arm"] == arm]
    return Run.load(Workspace(inputs / "workspace").ablations / "runs" / row["run"])


def test_arms_train_from_word_crop_stores_and_read_pictures(inputs: Path, tmp_path: Path) -> None:
    stores = f'''
data.crops.path = "{inputs}/store2"
data.crops.crops = 6
data.crops.share = 3.0
data.rendered.path = "{inputs}/store1"
data.rendered.share = 1.0
'''
    result = run(inputs, tmp_path, f"[arms.stored]{stores}[arms.pre-trained]{stores}start = 'pretrain'\n")
    assert {row["arm"]: row["crops"] for row in result.rows} == {"plain": 10, "stored": 16, "pre-trained": 16}
    stored = trained(inputs, result, "stored")
    assert (stored.recipe.encoder.kind, stored.recipe.finetune.mix) == ("clip:tiny", "3,1")
    assert isinstance(load_recognizer(stored).encoder, ClipEncoder)
    again = run(inputs, tmp_path, f"[arms.stored]{stores}[arms.pre-trained]{stores}start = 'pretrain'\n")
    assert (again.computed, again.rows) == (0, result.rows)


def test_a_store_and_pictures_are_not_one_arms_data(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be mixed with other data"):
        run(inputs, tmp_path, f'[arms.both]\ndata.other.path = "{inputs}/store1"\n')


def test_an_arm_that_starts_from_pooled_vectors_sees_through_its_clip(inputs: Path, tmp_path: Path) -> None:
    pooled = 'start = "pretrain"\nmemory.kind = "pooled"\n'
    result = run(inputs, tmp_path, f'[arms.pooled]\n{pooled}[arms.named]\n{pooled}encoder.kind = "vit"\n')
    run_of_pooled = trained(inputs, result, "pooled")
    assert run_of_pooled.recipe.encoder.kind == "clip:tiny"
    assert '"projection_dim": 128' in run_of_pooled.recipe.encoder.config
    assert trained(inputs, result, "named").recipe.encoder.kind == "vit"
    assert {row["pretrain_steps"] for row in result.rows if row["arm"] != "plain"} == {2}


def test_pooled_vectors_of_a_store_train_what_the_tower_in_the_loop_trains(inputs: Path, tmp_path: Path) -> None:
    pooled = 'start = "pretrain"\nmemory.kind = "pooled"\nfinetune.log_every = 1\n'
    frozen = "finetune.augmentation = 0.0\nfinetune.encoder_lr_scale = 0.0\n"
    arms = f'[arms.stored]\n{pooled}data.crops.path = "{inputs}/store1"\n[arms.looped]\n{pooled}{frozen}'
    result = run(inputs, tmp_path, arms)
    lines = [
        (trained(inputs, result, arm).folder / METRICS_FILE).read_text().splitlines() for arm in ("stored", "looped")
    ]
    stored, looped = ([json.loads(line)["loss"] for line in each] for each in lines)
    assert len(stored) == 2
    assert stored == pytest.approx(looped, rel=1e-3)


def test_a_zero_label_arm_reads_with_what_was_pre_trained_and_trains_nothing(inputs: Path, tmp_path: Path) -> None:
    arm = '[arms.none]\nstart = "pretrain"\nzero_label = true\nmemory.kind = "pooled"\n'
    result = run(inputs, tmp_path, arm)
    (row,) = [row for row in result.rows if row["arm"] == "none"]
    assert (row["steps"], row["crops"], row["seconds"], row["pretrain_steps"]) == (0, 0, 0, 2)
    assert row["words"] == 10
    runs = Workspace(inputs / "workspace").ablations / "runs"
    assert not (runs / row["run"]).exists()
    assert run(inputs, tmp_path, arm).computed == 0


def test_a_frozen_tower_sees_the_tests_once_and_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    look = ClipEncoder.tokens_and_pooled

    def counted(self: ClipEncoder, images: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal looked
        looked += 1
        return look(self, images)

    monkeypatch.setattr(ClipEncoder, "tokens_and_pooled", counted)
    encoders = [ClipEncoder(EncoderSettings(kind="clip:tiny", config=describe(BUNDLED))).eval() for _ in range(3)]
    for encoder in encoders[:2]:
        encoder.load(BUNDLED)
    images = torch.rand(2, 3, *encoders[0].size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        expected = [look(encoder, images) for encoder in encoders]
        for encoder in encoders:
            remember_tests(encoder)
        said = [encoder(images) for encoder in encoders]
    assert looked == 2, "once for both that have the same weights"
    assert all(torch.equal(tokens, own[0]) for tokens, own in zip(said, expected, strict=True))
