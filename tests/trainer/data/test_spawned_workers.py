"""Batches of every kind are made by spawned workers, the only kind that macOS and Windows have."""

from __future__ import annotations

import dataclasses
import io
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from dptr.cache.crops.dataset import WordImages, write_word_images
from dptr.cache.file_names import NEIGHBOURS_ARRAY
from dptr.cache.row_set import RowSet
from dptr.cache.stores.neighbours import Neighbours
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import Embeddings
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.trainer.data.image_batches import ImageBatches
from dptr.trainer.data.prompt_batches import NoiseSource, PromptBatches
from dptr.trainer.recipe import Recipe
from dptr.trainer.training.loop import load_batches

DIM, ROWS = 4, 12
CHARSET = Charset("ab")
LABELS = [("ab" * 3)[: 1 + number % 4] for number in range(ROWS)]


def encoded(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 16), (20 * number, 9, 99)).save(stream, "PNG")
    return stream.getvalue()


def open_crops(out: Path) -> WordImages:
    if out.suffix == ".tar":
        with tarfile.open(out, "w") as archive:
            for number, label in enumerate(LABELS):
                for name, content in ((f"{number}.png", encoded(number)), (f"{number}.txt", label.encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    else:
        with write_word_images(out) as writer:
            for number, label in enumerate(LABELS):
                writer.write(encoded(number), label)
    return WordImages.open([out], CHARSET, Normalization())


@pytest.fixture(name="_spawn")
def _spawning() -> Iterator[None]:
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method("spawn", force=True)
    yield
    torch.multiprocessing.set_start_method(before, force=True)


def numbers_of(batch: Any) -> list[Any]:
    """Everything in a batch, as lists."""
    if dataclasses.is_dataclass(batch):
        return [numbers_of(getattr(batch, field.name)) for field in dataclasses.fields(batch)]
    return batch.tolist() if isinstance(batch, torch.Tensor) else batch


def assert_spawned_workers_make_the_same(batches: Callable[[int], Any]) -> None:
    # Made here first: what is open in this process must not hinder the way to another.
    expected = [numbers_of(batches(number)) for number in range(3)]
    assert expected[0] != expected[1]
    assert [numbers_of(batch) for batch in load_batches(batches, range(3), workers=1)] == expected


@pytest.mark.slow
@pytest.mark.usefixtures("_spawn")
def test_prompts_with_noise_of_neighbours(
    tmp_path: Path, save_prompts: Callable[..., PromptStore], save_bank: Callable[..., OrpBank]
) -> None:
    generator = np.random.default_rng(0)

    def made(rows: int, tokens: int) -> Embeddings:
        values = generator.standard_normal((rows * tokens, DIM)).astype(np.float32)
        return Embeddings(values, np.full(rows, tokens), values[:rows])

    columns = {"label": LABELS, "label_length": pa.array(map(len, LABELS), pa.int16()), "count": np.arange(ROWS) + 1}
    store = save_prompts(tmp_path / "prompts", pa.table(columns), made(ROWS, 3), "ab", "float16")
    bank = save_bank(tmp_path / "orp", made(5, 8).tokens.reshape(5, 8, DIM), dtype="float16")
    np.save(tmp_path / NEIGHBOURS_ARRAY, generator.integers(0, 5, (ROWS, 2)).astype(np.int32))

    recipe = Recipe().replace("pretrain", batch_size=4, sampling="count").replace("noise", draw="mixed")
    neighbours = Neighbours(tmp_path / NEIGHBOURS_ARRAY)
    noise = NoiseSource(bank, recipe.noise, neighbours)
    assert_spawned_workers_make_the_same(PromptBatches(store, noise, RowSet.of(np.arange(ROWS), ROWS), recipe))


@pytest.mark.slow
@pytest.mark.usefixtures("_spawn")
def test_word_images_of_every_form(tmp_path: Path) -> None:
    recipe = Recipe().replace("finetune", batch_size=4, augmentation=1.0)
    for name in ("crops", "crops.parquet", "crops.tar", "crops.lmdb"):
        batches = ImageBatches(open_crops(tmp_path / name), CHARSET, recipe, 32, [128])
        expected = [numbers_of(batches(number)) for number in range(3)]
        # A worker gets it as these bytes; one is started below.
        sent = pickle.loads(pickle.dumps(batches))
        assert [numbers_of(sent(number)) for number in range(3)] == expected
    assert_spawned_workers_make_the_same(batches)
