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
from dptr.cache.stores.file_record import FileRecord
from dptr.cache.stores.manifest import Manifest
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
    1.95360, 1.96232, 1.93411, 1.95196, 1.94813, 1.92383, 1.94011, 1.93994, 1.92740, 1.96246,
    1.92098, 1.80062, 1.96417, 1.88875, 1.75142, 1.85675, 1.83907, 1.71492, 1.63853, 1.82870,
    1.87412, 1.90908, 1.85069, 1.81788, 1.56886, 1.63785, 1.81974, 1.82819, 1.81409, 1.78242,
    1.77582, 1.61624, 1.73441, 1.69465, 1.67392, 1.70589, 1.73721, 1.66422, 1.65477, 1.52972,
    1.65221, 1.70734, 1.51742, 1.64424, 1.50189, 1.51575, 1.70740, 1.53388, 1.74624, 1.69350,
]
# fmt: on
# fmt: off
FINE_TUNING = [
    1.97573, 1.94369, 1.93597, 1.94141, 1.91812, 1.93256, 1.93541, 1.88440, 1.88072, 1.92066,
    1.87744, 1.87300, 1.84895, 1.90433, 1.77644, 1.84372, 1.79630, 1.86929, 1.85140, 1.81840,
    1.84743, 1.79802, 1.93483, 1.80806, 1.78945, 1.81818, 1.76627, 1.75668, 1.78871, 1.76215,
    1.80430, 1.76946, 1.67653, 1.75889, 1.77355, 1.81229, 1.69527, 1.78753, 1.79631, 1.72048,
    1.76285, 1.70497, 1.73795, 1.74663, 1.71424, 1.74806, 1.74643, 1.59947, 1.79028, 1.72769,
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
