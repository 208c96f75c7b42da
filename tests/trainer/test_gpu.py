"""What must be the same on a GPU; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from dptr.cache.charset import Charset
from dptr.trainer.data.image_batches import ImageBatch
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Memory, Targets
from dptr.trainer.pretrain import PromptBatch
from dptr.trainer.training.recipe import Recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
CHARSET = Charset("abc")


@pytest.fixture
def batch() -> PromptBatch:
    tokens = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    padding = torch.arange(5) >= torch.tensor([5, 4, 3])[:, None]
    return PromptBatch(Memory(tokens, padding), Targets.of(["a", "abc", "bb"], CHARSET))


@pytest.mark.parametrize("kind", ["parseq", "nrtr", "parallel"])
def test_a_decoder_has_the_loss_and_the_gradients_of_the_cpu(batch: PromptBatch, kind: str) -> None:
    recipe = Recipe()
    shape = recipe.decoder.model_copy(
        update={"kind": kind, "dim": 16, "heads": 2, "feed_forward": 16, "dropout": 0.0, "permutations": 2}
    )
    torch.manual_seed(1)
    decoder = build_decoder(shape, len(CHARSET.characters), 8, recipe.memory)
    found = {}
    for device in ("cpu", "cuda"):
        decoder.to(device).zero_grad()
        loss = decoder.loss(batch.memory.to(device), batch.targets.to(device))
        loss.backward()
        gradients = [p.grad.cpu().clone() for p in decoder.parameters() if p.grad is not None]
        found[device] = [loss.detach().cpu(), *gradients]
    torch.testing.assert_close(found["cuda"], found["cpu"], atol=1e-4, rtol=1e-3)


def test_batches_are_pinned(batch: PromptBatch) -> None:
    pinned = batch.pin_memory()
    assert pinned.memory.tokens.is_pinned()
    assert pinned.targets.inputs.is_pinned()
    images = ImageBatch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), batch.targets).pin_memory()
    assert images.images.is_pinned()
