"""Embeddings stay as they are stored up to the device, and give the same memory there."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dptr.cache.choices import EmbeddingsDtype
from dptr.cache.crops.dataset import WordImages, preprocess
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import Embeddings
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.trainer.data.image_batches import ImageBatches
from dptr.trainer.data.prompt_batches import NoiseSource, column_memory, token_memory
from dptr.trainer.data.stored_memory import StoredMemory
from dptr.trainer.recipe import NoiseSettings, Recipe

DIM, RATIO = 8, 0.3
LABELS = ["ab", "a", "abc", "bc", "cab"]
STORED = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


def embeddings(rows: int, lengths: list[int]) -> Embeddings:
    generator = np.random.default_rng(rows)
    tokens = generator.standard_normal((sum(lengths), DIM)).astype(np.float32)
    return Embeddings(tokens, np.array(lengths), generator.standard_normal((rows, DIM)).astype(np.float32))


@pytest.fixture(params=STORED)
def dtype(request: pytest.FixtureRequest) -> EmbeddingsDtype:
    stored: EmbeddingsDtype = request.param
    return stored


@pytest.fixture
def store(tmp_path: Path, dtype: EmbeddingsDtype, save_prompts: Callable[..., PromptStore]) -> PromptStore:
    """Each label's letters are tokens of their own, the end one more."""
    letters = [[0, 0] + [1] * len(label) + [0] for label in LABELS]
    columns = {
        "label": pa.array(LABELS),
        "label_length": pa.array([len(label) for label in LABELS], pa.int16()),
        "token_letters": pa.array(letters, pa.list_(pa.int16())),
        "count": np.ones(len(LABELS), np.int64),
    }
    made = embeddings(len(LABELS), [len(label) + 1 for label in LABELS])
    return save_prompts(tmp_path / "prompts", pa.table(columns), made, "abc", dtype)


@pytest.fixture
def bank(tmp_path: Path, dtype: EmbeddingsDtype, save_bank: Callable[..., OrpBank]) -> OrpBank:
    made = embeddings(3, [12] * 3)
    return save_bank(tmp_path / "orp", made.tokens.reshape(3, 12, DIM), made.pooled, dtype)


def widened_before(store: PromptStore, rows: NDArray[np.int64], noise: NDArray[np.floating]) -> torch.Tensor:
    """The memory made of float32 from the start, number for number as it was when workers made it."""
    own, first = store.embeddings(rows), 1 + len(store.prefix)
    tokens = np.zeros((len(rows), first + int(own.lengths.max()), DIM), np.float32)
    tokens[:, 0], tokens[:, 1:first] = own.pooled, store.prefix
    tokens[:, first:][np.arange(int(own.lengths.max())) < own.lengths[:, None]] = own.tokens
    return torch.from_numpy(tokens).add_(torch.from_numpy(noise), alpha=RATIO)


def test_what_a_step_gets_is_the_same_to_the_last_bit(store: PromptStore, bank: OrpBank) -> None:
    rows, noise = np.array([4, 1, 2]), NoiseSource(bank, NoiseSettings(), None)
    memory = token_memory(store, rows, noise, RATIO, np.random.default_rng(7)).to("cpu")
    drawn = noise.draw(rows, memory.tokens.shape[1], np.random.default_rng(7))
    assert torch.equal(memory.tokens, widened_before(store, rows, drawn.floating()))
    assert memory.tokens.dtype == torch.float32
    assert memory.padding is not None
    assert (~memory.padding).sum(1).tolist() == [3 + 4, 3 + 2, 3 + 4]


def test_embeddings_and_noise_travel_in_the_precision_that_is_stored(
    store: PromptStore, bank: OrpBank, dtype: EmbeddingsDtype
) -> None:
    noise = NoiseSource(bank, NoiseSettings(), None)
    for memory in (
        token_memory(store, np.arange(5), noise, RATIO, np.random.default_rng(0)),
        column_memory(store, np.arange(5), noise, RATIO, 16, np.random.default_rng(0)),
    ):
        assert isinstance(memory, StoredMemory)
        assert memory.noise is not None
        assert memory.embeddings.values.dtype == memory.noise.values.dtype == STORED[dtype]
        again = pickle.loads(pickle.dumps(memory))
        assert torch.equal(again.to("cpu").tokens, memory.to("cpu").tokens)
        # The embeddings of a row are sent once, however many columns show them.
        assert len(memory.embeddings) == sum(len(label) + 1 for label in LABELS)


def test_columns_show_what_they_are_said_to(store: PromptStore) -> None:
    memory = column_memory(store, np.array([2, 0]), None, 0.0, 16, np.random.default_rng(0))
    tokens, own = memory.to("cpu").tokens, torch.from_numpy(store.embeddings(np.array([2, 0])).tokens)
    for row, first in enumerate((0, 4)):
        shown = [column for column in tokens[row] if column.any()]
        letters = own[first : first + (3, 2)[row]]
        assert {tuple(column.tolist()) for column in shown} == {tuple(letter.tolist()) for letter in letters}


@pytest.mark.parametrize(("label", "turned"), [("東京", True), ("ab", False), ("東", False)])
def test_a_column_is_turned_to_the_left_so_that_its_characters_follow_each_other(
    label: str, turned: bool, tmp_path: Path
) -> None:
    picture = Image.new("RGB", (20, 40), "white")
    picture.paste("black", (0, 0, 20, 10))  # the upper end, which then is on the left
    picture.save(tmp_path / "tall.png")
    (tmp_path / "labels.tsv").write_text(f"tall.png\t{label}\n", encoding="utf-8")
    (tmp_path / "charset.txt").write_text("東京ab", encoding="utf-8")
    charset = Charset.named(str(tmp_path / "charset.txt"))
    images = WordImages.open([tmp_path], charset, Normalization())
    batches = ImageBatches(images, charset, Recipe().replace("finetune", augmentation=0.0, batch_size=1), 32, [64])
    seen = preprocess(picture.transpose(Image.Transpose.ROTATE_90) if turned else picture, 32, 64)
    assert batches(0).portrait == ("tall.png",)
    assert np.array_equal(batches(0).images[0].numpy(), seen)
    assert (seen[:, :, :8].mean() < 60) == turned
