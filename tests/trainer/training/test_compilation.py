"""Compiled losses and batches of few shapes: the same numbers, and one compilation a shape."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dptr.cache.errors import UserError
from dptr.cache.stores.shards import StoredTokens
from dptr.cache.text.charset import Charset
from dptr.trainer.data.prompt_batches import PromptBatch
from dptr.trainer.data.stored_memory import StoredMemory, StoredTensor
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Decoder, Targets
from dptr.trainer.recipe import DecoderSettings, MemorySettings, TrainingSettings
from dptr.trainer.training.loop import compiled, few_shapes, is_compiled

CHARSET, DIM, ROWS, LONGEST = Charset("abcdefgh"), 16, 6, 13
CPU = torch.device("cpu")


def batch(number: int) -> PromptBatch:
    """Labels of one length or another, with as many own embeddings, behind a pooled vector and two of a prefix."""
    generator = np.random.default_rng(number)
    lengths = generator.integers(1, 3 + number % 11, ROWS)
    labels = ["".join(generator.choice(list("abcdefgh"), length)) for length in lengths]
    own, starts = np.arange(lengths.max()), np.cumsum(lengths) - lengths
    made = [generator.standard_normal((count, DIM)).astype(np.float32) for count in (lengths.sum(), ROWS, 2)]
    memory = StoredMemory(
        StoredTensor.of(StoredTokens(made[0])),
        torch.from_numpy(np.where(own < lengths[:, None], starts[:, None] + own, -1)),
        torch.from_numpy(made[1]),
        torch.from_numpy(made[2]),
    )
    noise = generator.standard_normal((ROWS, memory.tokens, DIM)).astype(np.float16)
    return PromptBatch(memory.with_noise(StoredTokens(noise), 0.1), Targets.of(labels, CHARSET))


def decoder(kind: str, layers: int = 1) -> Decoder:
    torch.manual_seed(0)
    sizes = {"dim": DIM, "heads": 2, "feed_forward": 32, "layers": layers, "max_label_length": LONGEST}
    shape = DecoderSettings(kind=kind, dropout=0, **sizes)  # type: ignore[arg-type]
    return build_decoder(shape, len(CHARSET.characters), DIM, MemorySettings()).train()


def plain_loss(model: Decoder) -> Callable[[PromptBatch], Tensor]:
    return lambda given: model.loss(given.memory, given.targets)  # type: ignore[arg-type]


def loss_and_gradients(loss: Callable[[PromptBatch], Tensor], model: Decoder, given: PromptBatch) -> list[Tensor]:
    torch.manual_seed(5)  # reading orders
    model.zero_grad()
    found = loss(given.to(CPU))
    found.backward()  # type: ignore[no-untyped-call]
    return [found.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("kind", ["parseq", "nrtr", "parallel", "ctc"])
def test_padding_to_few_shapes_changes_neither_loss_nor_gradients(kind: str) -> None:
    model, few = decoder(kind, layers=2), few_shapes(batch, LONGEST)
    shapes = set()
    for number in range(12):
        padded, plain = few(number), batch(number)
        found, expected = (loss_and_gradients(plain_loss(model), model, given) for given in (padded, plain))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        assert padded.to(CPU).memory.tokens.shape[1] % 8 == 0
        assert padded.targets.inputs.shape[1] in (4, 8, 12, LONGEST + 1)
        shapes.add((padded.to(CPU).memory.tokens.shape, padded.targets.inputs.shape))
    assert 2 < len(shapes) < 8


@pytest.mark.parametrize("kind", ["parseq", "nrtr", "parallel"])
def test_a_loss_is_compiled_once_a_shape(kind: str) -> None:
    graphs: list[Any] = []

    def counting(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    model, few = decoder(kind), few_shapes(batch, LONGEST)
    loss = compiled(plain_loss(model), backend=counting)
    made = [few(number).to(CPU) for number in range(12)]
    shapes = {(b.memory.tokens.shape, b.targets.inputs.shape) for b in made}
    for given in made:
        loss(given)
    seen = len(graphs)
    assert len(shapes) <= seen <= 2 * len(shapes), "a graph a shape, and what is drawn between two"
    for number in range(12, 30):
        given = few(number).to(CPU)
        if (given.memory.tokens.shape, given.targets.inputs.shape) in shapes:
            loss(given)
    assert len(graphs) == seen, "labels of other lengths in a shape that is known"


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no compiler")
@pytest.mark.parametrize(("kind", "backend"), [("parseq", "aot_eager"), ("nrtr", "inductor")])
def test_a_compiled_loss_is_the_same(kind: str, backend: str) -> None:
    """Of PARSeq the graphs, for which a compiler takes a minute; what it makes of them is tested on GPUs."""
    torch._dynamo.reset()
    model, few = decoder(kind), few_shapes(batch, LONGEST)
    ways = (compiled(plain_loss(model), backend=backend), plain_loss(model))
    found, expected = (loss_and_gradients(way, model, few(3)) for way in ways)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_without_a_compiler_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="C\\+\\+ compiler"):
        compiled(lambda given: torch.zeros(()))


def test_compiling_is_for_gpus_unless_asked_for() -> None:
    ways = {way: TrainingSettings.model_validate({"compile": way}) for way in ("no", "yes", "auto")}
    assert TrainingSettings().compile == "no"
    assert [is_compiled(ways[way], CPU) for way in ways] == [False, True, False]
    assert [is_compiled(ways[way], torch.device("cuda")) for way in ways] == [False, True, True]
