"""Fine-tuning from an image-feature store equals training with the frozen encoder in the loop."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.progress import set_quiet
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.image_features import WordCropStore
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.clip import clip_files
from dptr.pipeline.embed_crops import EmbedCropsSettings, embed_crops
from dptr.trainer.data.image_features import StoredBatches, StoredCrops, fixed_by, open_crops, stores_among
from dptr.trainer.finetune import finetune
from dptr.trainer.model.encoders.clip import ClipEncoder, describe
from dptr.trainer.model.recognizer import load_recognizer
from dptr.trainer.read import load
from dptr.trainer.recipe import Recipe
from dptr.trainer.training import runs
from dptr.trainer.training.checkpoint import load_tensors

WORDS = ["red", "oak", "tin", "sky", "map", "owl", "ice", "bun", "fog", "hut"]
CHARSET = Charset.named("94")
SETTINGS = EmbedCropsSettings(copies=3, dtype="float32")


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    set_quiet(True)


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory, draw_crops: Any) -> Path:
    folder = tmp_path_factory.mktemp("crops")
    draw_crops(folder, WORDS)
    return folder


@pytest.fixture(scope="module")
def store(crops: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "store"
    embed_crops([crops], folder, SETTINGS)
    return folder


@pytest.fixture(scope="module")
def first(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    train(store, folder)
    return folder


def recipe(**changes: Any) -> Recipe:
    made = Recipe().replace("decoder", dim=32, heads=4, layers=1, feed_forward=64, dropout=0.0)
    made = made.replace("encoder", kind="clip:tiny", config=describe(clip_files.BUNDLED)).replace(
        "fmu", queries=8, heads=4
    )
    settings = {"steps": 6, "batch_size": 4, "log_every": 1, "validate_every": 6, "checkpoint_every": 2} | changes
    return made.replace("finetune", validation_share=0.2, **settings)


def stored(folder: Path) -> StoredCrops:
    return StoredCrops.of([WordCropStore(folder)], CHARSET, Normalization())


def train(
    folder: Path, out: Path, start: runs.Run | None = None, clip: Path = clip_files.BUNDLED, **changes: Any
) -> Any:
    return finetune(stored(folder), CHARSET, start, recipe(**changes), out, encoder_model=clip)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_is_the_training_with_the_frozen_encoder_in_the_loop(crops: Path, tmp_path: Path) -> None:
    embed_crops([crops], tmp_path / "plain", dataclasses.replace(SETTINGS, copies=1))
    cached = train(tmp_path / "plain", tmp_path / "cached", augmentation=0.0)
    pictures = WordImages.open([crops], CHARSET, Normalization())
    frozen = recipe(augmentation=0.0, encoder_lr_scale=0.0)
    looped = finetune(pictures, CHARSET, None, frozen, tmp_path / "looped", encoder_model=clip_files.BUNDLED)
    assert cached.rows == looped.rows
    np.testing.assert_allclose(losses(tmp_path / "cached"), losses(tmp_path / "looped"), rtol=1e-4)
    assert cached.metrics == pytest.approx(looped.metrics, abs=1e-6)
    with_encoder, without = (runs.Run.load(tmp_path / name).weights() for name in ("looped", "cached"))
    assert set(with_encoder) == set(without)
    assert all(torch.allclose(with_encoder[name], without[name], atol=1e-4) for name in with_encoder)


def test_a_run_is_read_where_neither_store_nor_clip_is_at_hand(crops: Path, store: Path, tmp_path: Path) -> None:
    clip, copied = tmp_path / "clip", tmp_path / "store"
    shutil.copytree(clip_files.BUNDLED, clip)
    shutil.copytree(store, copied)
    train(copied, tmp_path / "run", clip=clip)
    shutil.rmtree(clip)
    shutil.rmtree(copied)
    assert not any(name.startswith("encoder.") for name in load_tensors(tmp_path / "run/checkpoints/best", "model"))
    reader = load(tmp_path / "run")
    assert isinstance(reader.recognizer.encoder, ClipEncoder)
    projection = load_file(clip_files.BUNDLED / "model.safetensors")["visual_projection.weight"]
    encoder = load_recognizer(runs.Run.load(tmp_path / "run")).encoder
    assert torch.equal(encoder.get_parameter("encoder.visual_projection.weight"), projection)
    assert len(reader.read([crops / "0.png", crops / "1.png"])) == 2


def test_every_epoch_shows_another_view_until_all_were_seen(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = stored(store)
    batches = StoredBatches(images, CHARSET, recipe())
    shown: dict[str, list[int]] = {label: [] for label in WORDS}
    look = StoredCrops.views

    def noted(self: StoredCrops, indices: np.ndarray, views: np.ndarray) -> Any:
        for index, view in zip(indices.tolist(), views.tolist(), strict=True):
            shown[self.samples[index].label].append(view)
        return look(self, indices, views)

    monkeypatch.setattr(StoredCrops, "views", noted)
    for number in range(3 * batches.per_epoch):
        batch = batches(number)
        labels = [CHARSET.decode(row.numpy()) for row in batch.targets.outputs]
        assert labels == [images.samples[row].label for row in batches._order.rows_of(number)]
    assert {label: sorted(views) for label, views in shown.items()} == {word: [0, 1, 2] for word in WORDS}
    assert len({views[0] for views in shown.values()}) > 1


def test_a_run_that_was_cut_goes_on_to_the_same_bits(
    store: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = StoredBatches.__call__

    def dies(self: StoredBatches, number: int) -> Any:
        if number == 3:
            raise RuntimeError("killed")
        return make(self, number)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        patched.setattr(StoredBatches, "__call__", dies)
        train(store, tmp_path / "cut")
    train(store, tmp_path / "cut")
    whole, resumed = (load_tensors(run / "checkpoints" / "last", "model") for run in (first, tmp_path / "cut"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_another_encoder_is_rejected(store: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    shutil.copytree(clip_files.BUNDLED, clip)
    weights = load_file(clip / "model.safetensors")
    weights["visual_projection.weight"] = weights["visual_projection.weight"] + 1
    save_file(weights, clip / "model.safetensors", {"format": "pt"})
    with pytest.raises(DamagedStore, match="image encoder"):
        train(store, tmp_path / "run", clip=clip)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_recogniser_is_trained_further_when_its_encoder_is_the_stores_own(
    crops: Path, store: Path, first: Path, tmp_path: Path
) -> None:
    start = runs.Run.load(first)
    again = train(store, tmp_path / "second", start, steps=1, learning_rate=1e-9)
    assert not again.coverage.missing + again.coverage.extra
    before, after = start.weights(), runs.Run.load(tmp_path / "second").weights()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    pictures = WordImages.open([crops], CHARSET, Normalization())
    finetune(pictures, CHARSET, None, recipe(steps=1), tmp_path / "moved", encoder_model=clip_files.BUNDLED)
    with pytest.raises(DamagedStore, match="not that of moved"):
        train(store, tmp_path / "third", runs.Run.load(tmp_path / "moved"))


def test_a_store_beside_other_data_is_rejected_in_one_line(crops: Path, store: Path, tmp_path: Path) -> None:
    for paths in ([store, crops], [crops, store]):
        with pytest.raises(UserError, match="cannot be mixed"):
            stores_among(paths)
    assert stores_among([crops]) == []
    pictures, clip = WordImages.open([crops], CHARSET, Normalization()), clip_files.BUNDLED
    for images, validation in ((stored(store), pictures), (pictures, stored(store))):
        with pytest.raises(UserError, match="must both be image-feature stores"):
            finetune(images, CHARSET, None, recipe(), tmp_path / "run", encoder_model=clip, validation=validation)
    with pytest.raises(UserError, match="is a store, not labelled crops"):
        WordImages.open([store], CHARSET, Normalization())


def test_crops_of_a_store_that_are_validation_crops_are_not_trained_on(store: Path, tmp_path: Path) -> None:
    images = stored(store)
    clip, some = clip_files.BUNDLED, images.only([0, 1])
    summary = finetune(images, CHARSET, None, recipe(steps=1), tmp_path / "run", encoder_model=clip, validation=some)
    assert summary.rows == len(images) - 2
    with pytest.raises(UserError, match="training crops are validation crops"):
        finetune(images, CHARSET, None, recipe(), tmp_path / "same", encoder_model=clip, validation=stored(store))


def test_two_stores_of_one_encoder_are_trained_from_in_the_proportions_asked_for(
    crops: Path, store: Path, tmp_path: Path
) -> None:
    embed_crops([crops], tmp_path / "single", dataclasses.replace(SETTINGS, copies=1))
    both = open_crops([store, tmp_path / "single"], CHARSET, Normalization())
    assert isinstance(both, StoredCrops)
    assert [sample.data_set for sample in both.samples] == [0] * 10 + [1] * 10
    first, second = WordCropStore(store), WordCropStore(tmp_path / "single")
    rows = np.array([13, 2, 9, 10])
    expected = [second.tokens(np.array([3]), np.array([0])), first.tokens(np.array([2]), np.array([1]))]
    expected += [first.tokens(np.array([9]), np.array([2])), second.tokens(np.array([0]), np.array([0]))]
    assert np.array_equal(both.views(rows, np.array([0, 1, 2, 0])).floating(), np.concatenate(expected))
    batches = StoredBatches(both, CHARSET, recipe(mix="3,1", batch_size=10))
    drawn = [batches._order.rows_of(number) for number in range(200)]
    assert np.mean(np.concatenate(drawn) < 10) == pytest.approx(0.75, abs=0.03)
    result = finetune(both, CHARSET, None, recipe(steps=1), tmp_path / "run", encoder_model=clip_files.BUNDLED)
    assert result.steps == 1


def test_stores_of_different_encoders_are_not_mixed(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "other")
    manifest = checksummed.read_json(tmp_path / "other" / "manifest.json")
    manifest["identity"]["image_weights"] = "of another CLIP"
    checksummed.write_json(tmp_path / "other" / "manifest.json", manifest)
    with pytest.raises(DamagedStore, match=r"not that of .*other"):
        open_crops([store, tmp_path / "other"], CHARSET, Normalization())


def test_a_store_fixes_encoder_and_augmentation(store: Path) -> None:
    opened = [WordCropStore(store)]
    assert fixed_by(opened, None, []) == ["encoder.kind=clip:tiny", "finetune.augmentation=1.0"]
    assert fixed_by(opened, "clip:elsewhere", ["finetune.steps=3"])[0] == "encoder.kind=clip:elsewhere"
    assert fixed_by([], "vit", ["encoder.dim=8"]) == []
    for encoder, changes in (("vit", []), (None, ["encoder.dim=8"]), (None, ["finetune.augmentation=0"])):
        with pytest.raises(UserError, match="fixes encoder and augmentation"):
            fixed_by(opened, encoder, changes)


def test_labels_are_judged_by_the_charset_that_is_trained_in(store: Path) -> None:
    images = open_crops([store], Charset("adekmopr"), Normalization())
    assert [sample.label for sample in images.samples] == ["red", "oak", "map"]
    assert images.rejected.counts == {"not in the charset": 7}
    assert isinstance(images, StoredCrops)
    assert images.rows.tolist() == [0, 1, 4]
    with pytest.raises(UserError, match="no usable label"):
        open_crops([store], Charset("xyz"), Normalization())
