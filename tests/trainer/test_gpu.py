"""What must be the same on a GPU, and what must not keep it waiting; skipped where there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dptr.cache.stores.shards import StoredTokens
from dptr.cache.text.charset import Charset
from dptr.trainer.data.image_batches import ImageBatch
from dptr.trainer.data.prompt_batches import PromptBatch
from dptr.trainer.data.stored_memory import StoredMemory, StoredTensor
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Decoder, Memory, Targets
from dptr.trainer.model.layers import grid_positions
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.recipe import Recipe, TrainingSettings
from dptr.trainer.training import loop
from dptr.trainer.training.loop import compiled

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
CHARSET, DIM = Charset("abc"), 8
LABELS = ["a", "abc", "bb"]
GPU = torch.device("cuda")


def memory(stored: str = "float16") -> StoredMemory:
    """Three rows of five, four and three tokens, two of them the pooled vector and a prefix of one."""
    generator = np.random.default_rng(0)
    values = generator.standard_normal((6, DIM)).astype(np.float32)
    scale = np.full(6, 1 / 50, np.float32) if stored == "int8" else None
    tokens = StoredTokens((50 * values).astype(np.int8) if stored == "int8" else values.astype(stored), scale)
    made = StoredMemory(
        StoredTensor.of(tokens),
        torch.tensor([[0, 1, 2], [3, 4, -1], [5, -1, -1]]),
        torch.from_numpy(generator.standard_normal((3, DIM)).astype(np.float16)),
        torch.from_numpy(generator.standard_normal((1, DIM)).astype(np.float32)),
    )
    return made.with_noise(StoredTokens(generator.standard_normal((3, made.tokens, DIM)).astype(np.float16)), 0.1)


@pytest.fixture
def batch() -> PromptBatch:
    return PromptBatch(memory(), Targets.of(LABELS, CHARSET))


def decoder(kind: str, dropout: float = 0.0) -> Decoder:
    recipe = Recipe()
    shape = recipe.decoder.model_copy(
        update={"kind": kind, "dim": 16, "heads": 2, "feed_forward": 16, "dropout": dropout, "permutations": 2}
    )
    torch.manual_seed(1)
    return build_decoder(shape, len(CHARSET.characters), DIM, recipe.memory)


def loss_and_gradients(model: nn.Module, loss: Callable[[], Tensor]) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(2)
    found = loss()
    found.backward()  # type: ignore[no-untyped-call]
    return [found.detach().cpu(), *(p.grad.cpu().clone() for p in model.parameters() if p.grad is not None)]


def on(device: torch.device, given: PromptBatch) -> tuple[Memory, Targets]:
    placed = given.to(device)
    assert isinstance(placed.memory, Memory)
    return placed.memory, placed.targets


@pytest.mark.parametrize("kind", ["parseq", "nrtr", "parallel", "ctc"])
def test_a_decoder_has_the_loss_and_the_gradients_of_the_cpu(batch: PromptBatch, kind: str) -> None:
    model = decoder(kind)
    found = {}
    for device in (torch.device("cpu"), GPU):
        model.to(device)
        given = on(device, batch)
        found[device.type] = loss_and_gradients(model, lambda given=given: model.loss(*given))  # type: ignore[misc]
    torch.testing.assert_close(found["cuda"], found["cpu"], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["parseq", "nrtr"])
def test_a_compiled_loss_is_that_of_the_cpu(batch: PromptBatch, kind: str) -> None:
    model, few = decoder(kind), batch.padded(26)
    expected = loss_and_gradients(model, lambda: model.loss(*on(torch.device("cpu"), batch)))
    model.to(GPU)

    def of_batch(given: PromptBatch) -> Tensor:
        return model.loss(cast(Memory, given.memory), given.targets)

    loss = compiled(of_batch)
    found = loss_and_gradients(model, lambda: loss(few.to(GPU)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("stored", ["float32", "float16", "int8"])
def test_a_memory_is_put_together_as_on_the_cpu(stored: str) -> None:
    expected, found = memory(stored).to("cpu"), memory(stored).pin_memory().to(GPU)
    torch.testing.assert_close(found.tokens.cpu(), expected.tokens, atol=1e-6, rtol=1e-6)
    assert found.padding is not None
    assert expected.padding is not None
    assert torch.equal(found.padding.cpu(), expected.padding)


def test_places_of_a_grid_are_those_of_the_cpu() -> None:
    torch.testing.assert_close(grid_positions(2, 8, 12, GPU).cpu(), grid_positions(2, 8, 12), atol=1e-5, rtol=1e-5)


def recipe() -> Recipe:
    made = Recipe().replace("encoder", kind="convolution", dim=16, channels=4, image_width=32)
    made = made.replace("decoder", kind="nrtr", dim=16, heads=2, feed_forward=16, layers=1, max_label_length=4)
    return made.replace("fmu", kind="none")


def test_a_recogniser_sees_what_it_sees_on_the_cpu() -> None:
    torch.manual_seed(0)
    model = Recognizer(recipe(), CHARSET, 16).eval()
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        expected = model.memory(images).tokens
        found = model.to(GPU).memory(images.to(GPU)).tokens
    torch.testing.assert_close(found.cpu(), expected, atol=1e-2, rtol=1e-2)  # convolutions in TF32


def pinned(value: object) -> Iterator[bool]:
    """Whether each tensor within a batch is pinned."""
    if isinstance(value, Tensor):
        yield value.is_pinned()
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from pinned(getattr(value, field.name))


def test_batches_are_pinned(batch: PromptBatch) -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    plain = PromptBatch(memory().to("cpu"), batch.targets)
    tokens = StoredTensor(torch.zeros(2, 3, 4, dtype=torch.int8), torch.ones(2, 3))
    stored = ImageBatch(tokens, batch.targets)
    for given in (batch, plain, ImageBatch(images, batch.targets), stored):
        assert all(pinned(given.pin_memory())), type(given).__name__


def train_watched(task: loop.Task[Any], folder: Path, settings: TrainingSettings) -> int:
    """Train; from the second step to the end of the last but one, an operation that waits for the GPU is an error."""
    steps, loss = [0], task.loss

    def watching(given: object) -> Tensor:
        steps[0] += 1
        torch.cuda.set_sync_debug_mode("error" if 2 <= steps[0] < settings.steps else "default")
        return loss(given)

    task.loss = watching
    try:
        loop.run(folder, task, settings, GPU)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return steps[0]


SETTINGS = TrainingSettings(
    steps=6, batch_size=3, log_every=100, validate_every=100, checkpoint_every=100, ema_decay=0.9, precision="bf16"
)


@pytest.mark.parametrize("kind", ["parseq", "nrtr", "parallel"])
def test_no_step_of_pre_training_waits_for_the_gpu(batch: PromptBatch, kind: str, tmp_path: Path) -> None:
    model = decoder(kind, dropout=0.1).to(GPU)
    task = loop.Task(
        model=model,
        batch=lambda number: batch,
        loss=lambda given: model.loss(given.memory, given.targets),  # type: ignore[arg-type]
        validate=lambda _: {"score": 0.0},
        groups=[loop.ParameterGroup(list(model.parameters()))],
    )
    assert train_watched(task, tmp_path, SETTINGS) == SETTINGS.steps


def test_no_step_of_fine_tuning_waits_for_the_gpu(tmp_path: Path) -> None:
    model = Recognizer(recipe(), CHARSET, 16).to(GPU)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    task = loop.Task(
        model=model,
        batch=lambda number: ImageBatch(images, Targets.of(LABELS, CHARSET)),
        loss=lambda given: model.loss(given.images, given.targets),  # type: ignore[arg-type]
        validate=lambda _: {"score": 0.0},
        groups=[loop.ParameterGroup(list(model.parameters()))],
    )
    assert train_watched(task, tmp_path, SETTINGS) == SETTINGS.steps
