"""Stored losses of 50 steps: a change that moves training by a thousandth shows here, whatever else still passes.

The numbers were written down once (torch 2, single precision, one thread). When a change of training is meant, run the
tests, look at how far the curve moved and why, and store the new one with that change.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from dptr.cache.crops.dataset import WordImages, write_word_images
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import Embeddings
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.trainer.finetune import finetune
from dptr.trainer.pretrain import pretrain
from dptr.trainer.recipe import Recipe

LETTERS, DIM = "abcdef", 16
TOLERANCE = 1e-3
SIZES = {"dim": DIM, "heads": 2, "layers": 1, "feed_forward": 32, "dropout": 0.1, "max_label_length": 6}
TRAINING = {"steps": 50, "batch_size": 8, "learning_rate": 0.005, "log_every": 1, "validate_every": 50, "seed": 1}

# fmt: off
PRETRAINING = [
    1.96273, 1.95053, 1.93737, 1.95848, 1.94878, 1.92899, 1.95739, 1.93931, 1.97566, 1.90797,
    1.94672, 1.86786, 1.95142, 1.93475, 1.80952, 1.89582, 1.82233, 1.71598, 1.75298, 1.82182,
    1.85309, 1.87259, 1.79403, 1.84740, 1.69185, 1.75567, 1.85144, 1.80469, 1.74759, 1.80881,
    1.75298, 1.67325, 1.78345, 1.68172, 1.76790, 1.71579, 1.70697, 1.71288, 1.67423, 1.58556,
    1.73465, 1.74992, 1.55457, 1.63242, 1.61654, 1.54017, 1.74408, 1.54968, 1.70679, 1.69682,
]
# fmt: on
# fmt: off
FINE_TUNING = [
    1.92540, 1.94320, 1.93981, 1.92031, 1.92405, 1.93268, 1.90914, 1.91340, 1.90251, 1.90602,
    1.88653, 1.83853, 1.84357, 1.90101, 1.82937, 1.81046, 1.80800, 1.88026, 1.79372, 1.83953,
    1.83751, 1.74125, 1.79576, 1.80420, 1.81017, 1.77945, 1.77915, 1.75269, 1.72001, 1.79646,
    1.80809, 1.75445, 1.72622, 1.72841, 1.78647, 1.77915, 1.73127, 1.82627, 1.85772, 1.72754,
    1.82868, 1.87624, 1.68470, 1.77426, 1.69774, 1.77024, 1.85117, 1.65967, 1.73354, 1.80281,
]
# fmt: on


def words() -> list[str]:
    generator = np.random.default_rng(0)
    return ["".join(generator.choice(list(LETTERS), 2 + number % 4)) for number in range(120)]


def prompts() -> tuple[pa.Table, Embeddings]:
    """Catalogue and embeddings; a token is its letter's own vector, moved by where the letter stands."""
    labels, generator = words(), np.random.default_rng(1)
    vectors, positions = generator.standard_normal((len(LETTERS), DIM)), generator.standard_normal((6, DIM))
    tokens = [
        vectors[LETTERS.index(letter)] + positions[position]
        for label in labels
        for position, letter in enumerate(label)
    ]
    lengths = np.array([len(label) for label in labels])
    pooled = np.array([vectors[[LETTERS.index(letter) for letter in label]].mean(0) for label in labels])
    embeddings = Embeddings(np.array(tokens, np.float32), lengths, pooled.astype(np.float32))
    columns = {"label": labels, "label_length": pa.array(lengths, pa.int16()), "count": np.ones(len(labels), np.int64)}
    return pa.table(columns), embeddings


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


def test_pre_training_follows_the_stored_curve(
    tmp_path: Path, save_prompts: Callable[..., PromptStore], save_bank: Callable[..., OrpBank]
) -> None:
    recipe = Recipe().replace("decoder", **SIZES, kind="parseq", permutations=4)
    recipe = recipe.replace("pretrain", **TRAINING).replace("noise", ratio=0.1)
    values = np.random.default_rng(2).standard_normal((5 * 12, DIM)).astype(np.float32)
    store = save_prompts(tmp_path / "prompts", *prompts(), LETTERS, prefix=1.0)
    bank = save_bank(tmp_path / "orp", values.reshape(5, 12, DIM), values[:5])
    pretrain(store, bank, None, recipe, tmp_path / "run")
    assert curve(tmp_path / "run") == pytest.approx(PRETRAINING, rel=TOLERANCE)


def test_fine_tuning_with_fmu_and_nrtr_follows_the_stored_curve(tmp_path: Path) -> None:
    recipe = Recipe().replace("decoder", **SIZES, kind="nrtr").replace("fmu", queries=7, heads=2, dropout=0.1)
    recipe = recipe.replace("encoder", stem="linear", dim=DIM, heads=2, layers=1, patch_height=16, patch_width=8)
    recipe = recipe.replace("finetune", **TRAINING, augmentation=0.0)
    finetune(make_crops(tmp_path / "crops.lmdb"), Charset(LETTERS), None, recipe, tmp_path / "run")
    assert curve(tmp_path / "run") == pytest.approx(FINE_TUNING, rel=TOLERANCE)
