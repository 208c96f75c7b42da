"""Stored losses of 50 steps: a change that moves training by a thousandth shows here, whatever else still passes.

The numbers were written down once (torch 2, single precision, one thread). When a change of training is meant, run the
tests, look at how far the curve moved and why, and store the new one with that change.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dptr.cache.charset import Charset
from dptr.cache.file_names import PREFIX_FILE
from dptr.cache.normalization import Normalization
from dptr.cache.stores.manifest import FileRecord, Manifest
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import States, write_shard, write_states
from dptr.cache.word_images.dataset import WordImages
from dptr.cache.word_images.writer import write_word_images
from dptr.trainer.finetune import finetune
from dptr.trainer.pretrain import pretrain
from dptr.trainer.training.recipe import Recipe

LETTERS, DIM = "abcdef", 16
TOLERANCE = 1e-3
SIZES = {"dim": DIM, "heads": 2, "layers": 1, "feed_forward": 32, "dropout": 0.1, "max_label_length": 6}
TRAINING = {"steps": 50, "batch_size": 8, "learning_rate": 0.005, "log_every": 1, "validate_every": 50, "seed": 1}

# fmt: off
PRETRAINING = [
    1.96081, 1.95186, 1.93909, 1.95570, 1.94184, 1.92831, 1.96118, 1.93440, 1.97775, 1.90073,
    1.94944, 1.88332, 1.95705, 1.94029, 1.85209, 1.89452, 1.83180, 1.74388, 1.75316, 1.82402,
    1.85575, 1.86917, 1.80367, 1.83400, 1.75629, 1.78648, 1.84778, 1.81166, 1.76950, 1.85732,
    1.74252, 1.67057, 1.77093, 1.68247, 1.77865, 1.76376, 1.69195, 1.74316, 1.68881, 1.54045,
    1.69243, 1.76689, 1.56032, 1.62916, 1.60115, 1.56528, 1.73708, 1.52792, 1.69125, 1.70852,
]
# fmt: on
# fmt: off
FINE_TUNING = [
    1.93376, 1.93974, 1.94280, 1.92397, 1.91864, 1.92731, 1.90668, 1.91263, 1.90418, 1.91289,
    1.89109, 1.82923, 1.84962, 1.91391, 1.83688, 1.81588, 1.79894, 1.88841, 1.80524, 1.84911,
    1.80001, 1.74948, 1.79578, 1.77533, 1.79940, 1.78228, 1.81225, 1.75005, 1.71497, 1.75565,
    1.77778, 1.73494, 1.73383, 1.72929, 1.73865, 1.75987, 1.72868, 1.78750, 1.87744, 1.73207,
    1.82688, 1.84603, 1.65379, 1.79213, 1.69133, 1.79344, 1.83685, 1.63942, 1.76517, 1.77605,
]
# fmt: on


def words() -> list[str]:
    generator = np.random.default_rng(0)
    return ["".join(generator.choice(list(LETTERS), 2 + number % 4)) for number in range(120)]


def make_store(folder: Path) -> PromptStore:
    """Each token of a row is its letter's own vector, moved by where the letter stands."""
    folder.mkdir()
    labels, generator = words(), np.random.default_rng(1)
    vectors, positions = generator.standard_normal((len(LETTERS), DIM)), generator.standard_normal((6, DIM))
    tokens = [
        vectors[LETTERS.index(letter)] + positions[position]
        for label in labels
        for position, letter in enumerate(label)
    ]
    lengths = np.array([len(label) for label in labels])
    pooled = np.array([vectors[[LETTERS.index(letter) for letter in label]].mean(0) for label in labels])
    states = States(np.array(tokens, np.float32), lengths, pooled.astype(np.float32))
    columns = {"label": labels, "label_length": pa.array(lengths, pa.int16()), "count": np.ones(len(labels), np.int64)}
    manifest = Manifest("prompts", {"encoder": "made up", "weights": "w", "charset": LETTERS})
    manifest.shards.append(write_shard(folder, 0, pa.table(columns), states, "float32", {}))
    prefix = States(np.ones((2, DIM), np.float32), np.array([2]), np.ones((1, DIM), np.float32))
    write_states(folder / PREFIX_FILE, prefix, "float32")
    manifest.files[PREFIX_FILE] = FileRecord.of(folder / PREFIX_FILE)
    manifest.save(folder)
    return PromptStore(folder)


def make_bank(folder: Path) -> OrpBank:
    folder.mkdir()
    values = np.random.default_rng(2).standard_normal((5 * 12, DIM)).astype(np.float32)
    manifest = Manifest("orp", {"encoder": "made up", "weights": "w", "tokens_per_crop": 12})
    states = States(values, np.full(5, 12), values[:5])
    manifest.shards.append(write_shard(folder, 0, pa.table({"id": np.arange(5)}), states, "float32", {}))
    manifest.save(folder)
    return OrpBank(folder)


def make_crops(path: Path) -> WordImages:
    """Letters are bars whose height and shade tell them apart; nothing here depends on a font."""
    with write_word_images(path) as writer:
        for label in words():
            pixels = np.full((32, 128, 3), 255, np.uint8)
            for position, letter in enumerate(label):
                number = LETTERS.index(letter)
                pixels[4 : 10 + 4 * number, 8 + 20 * position : 18 + 20 * position] = 30 * number
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            writer.write(stream.getvalue(), label)
    return WordImages.open([path], Charset(LETTERS), Normalization())


def curve(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_pre_training_follows_the_stored_curve(tmp_path: Path) -> None:
    recipe = Recipe().replace("decoder", **SIZES, kind="parseq", permutations=4)
    recipe = recipe.replace("pretrain", **TRAINING).replace("noise", ratio=0.1)
    store, bank = make_store(tmp_path / "prompts"), make_bank(tmp_path / "orp")
    pretrain(store, bank, None, recipe, tmp_path / "run")
    assert curve(tmp_path / "run") == pytest.approx(PRETRAINING, rel=TOLERANCE)


def test_fine_tuning_with_fmu_and_nrtr_follows_the_stored_curve(tmp_path: Path) -> None:
    recipe = Recipe().replace("decoder", **SIZES, kind="nrtr").replace("fmu", queries=7, heads=2, dropout=0.1)
    recipe = recipe.replace("encoder", stem="linear", dim=DIM, heads=2, layers=1, patch_height=16, patch_width=8)
    recipe = recipe.replace("finetune", **TRAINING, augmentation=0.0)
    finetune(make_crops(tmp_path / "crops.lmdb"), Charset(LETTERS), None, recipe, tmp_path / "run")
    assert curve(tmp_path / "run") == pytest.approx(FINE_TUNING, rel=TOLERANCE)
