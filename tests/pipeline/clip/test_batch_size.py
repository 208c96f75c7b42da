"""Where memory is too short for a batch, half of it is encoded from then on; the embeddings are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dptr.pipeline.clip.batch_size import Halving, batch_for
from dptr.pipeline.clip.loading import Clip, ImageEncoder, load_clip
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.text.templates import Template

WORDS = ["street", "exit", "open", "a", "bc", "door", "seven", "North"] * 6


class ShortMemory:
    """Holds so many items at once and no more; remembers what it was asked for."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error = room, error
        self.asked: list[int] = []

    def guard(self, work: Callable[..., Any], size: Callable[..., int]) -> Callable[..., Any]:
        def guarded(*given: Any, **named: Any) -> Any:
            self.asked.append(size(*given, **named))
            if self.asked[-1] > self.room:
                raise self.error
            return work(*given, **named)

        return guarded


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("tiny")


ERRORS = [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory: 9 bytes")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_short_memory_halves_batches_from_then_on(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    memory, halving = ShortMemory(5, error), Halving("pictures")

    def double(batch: NDArray[np.int64]) -> NDArray[np.int64]:
        return 2 * batch

    work = memory.guard(double, len)
    assert np.concatenate(halving.run(work, np.arange(16))).tolist() == list(range(0, 32, 2))
    assert memory.asked == [16, 8, 4, 4, 4, 4]
    assert np.concatenate(halving.run(work, np.arange(9))).tolist() == list(range(0, 18, 2))
    assert max(memory.asked[6:]) <= 4, "what did not fit is not tried again"
    said = capsys.readouterr().err
    assert "too little memory for 16 pictures per batch: reduced to 8" in said
    assert "8 pictures per batch: reduced to 4" in said


def test_what_is_no_lack_of_memory_and_what_does_not_fit_alone_is_raised() -> None:
    for room, error in ((0, MemoryError()), (5, RuntimeError("shapes differ"))):
        memory = ShortMemory(room, error)
        with pytest.raises(type(error)):
            Halving("pictures").run(memory.guard(lambda batch: batch, len), np.arange(16))
        assert memory.asked == ([16, 8, 4, 2, 1] if room == 0 else [16])


def test_embeddings_of_text_are_the_same_with_little_memory(
    clip: Clip, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = TextEncoder(clip, Template())
    ids = encoder.tokenize([Template().prompt(word) for word in WORDS])
    expected, by_two = encoder.encode(ids), encoder.encode(ids, 8)
    memory = ShortMemory(20, torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(encoder._forward, "run", memory.guard(encoder._forward.run, torch.numel))
    found = encoder.encode(ids)
    assert max(memory.asked) > 20
    assert "tokens per batch" in capsys.readouterr().err
    for embeddings in (found, by_two):
        np.testing.assert_allclose(embeddings.tokens, expected.tokens, atol=2e-5)
        np.testing.assert_allclose(embeddings.pooled, expected.pooled, atol=2e-5)
        assert embeddings.lengths.tolist() == expected.lengths.tolist()


def test_embeddings_of_pictures_are_the_same_with_little_memory(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ImageEncoder(clip)
    side = clip.model.config.vision_config.image_size
    pixels = np.random.default_rng(0).standard_normal((7, 3, side, side)).astype(np.float32)
    expected = encoder.encode(pixels)
    memory = ShortMemory(2, torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(encoder, "_encode", memory.guard(encoder._encode, len))
    for found, wanted in zip(encoder.encode(pixels), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5)
    assert memory.asked[0] == 7
    assert memory.asked[-1] <= 2


def test_a_gpu_takes_as_much_as_its_memory_holds(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        device, dtype = torch.device("cuda"), torch.bfloat16

    assert batch_for(clip.model, 512, 1, 1024) == 1024
    sizes = []
    for gigabytes in (8, 80):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=gigabytes: (free * 2**30, 80 * 2**30))
        sizes.append((batch_for(OnGpu, 512, 1, 1024), batch_for(OnGpu, 768, 197, 32)))
    assert sizes == [(16384, 64), (131072, 512)]
