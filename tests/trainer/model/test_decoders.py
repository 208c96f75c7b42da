"""What every decoder must do, whatever its kind: learn, read back what it learnt, and not care about padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dptr.cache.errors import UserError
from dptr.cache.text.charset import Charset
from dptr.trainer.finetune import load_weights
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.autoregressive import NrtrDecoder
from dptr.trainer.model.decoders.base import Decoder, Memory, Targets
from dptr.trainer.model.decoders.pooled import PooledDecoder
from dptr.trainer.recipe import DecoderSettings, MemorySettings

KINDS = ["parseq", "nrtr", "parallel"]
CHARSET = Charset("abcdefgh")
LABELS = ["bad", "hedge", "a", "cafe", "gaga"]
SETTINGS = DecoderSettings(
    dim=32, heads=4, layers=2, feed_forward=64, dropout=0.0, permutations=4, refinements=1, max_label_length=7
)


def decoder(kind: str, seed: int = 0, **changes: Any) -> Decoder:
    torch.manual_seed(seed)
    return build_decoder(SETTINGS.model_copy(update={"kind": kind, **changes}), len(CHARSET.characters), 12).eval()


def memory(rows: int = len(LABELS)) -> Memory:
    padding = torch.zeros(rows, 6, dtype=torch.bool)
    padding[::2, 4:] = True
    return Memory(torch.randn(rows, 6, 12, generator=torch.Generator().manual_seed(1)), padding)


def texts(logits: torch.Tensor) -> list[str]:
    return [CHARSET.decode(row) for row in logits.argmax(-1).numpy()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2])
def test_learns_a_handful_of_memories_by_heart(kind: str, layers: int) -> None:
    model, seen, targets = decoder(kind, layers=layers).train(), memory(), Targets.of(LABELS, CHARSET)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(seen, targets).backward()
        optimizer.step()
    with torch.inference_mode():
        assert texts(model.eval().decode(seen)) == LABELS
        # What was learnt is in the memory and not in the order of the rows.
        assert seen.padding is not None
        assert texts(model.decode(Memory(seen.tokens.flip(0), seen.padding.flip(0)))) == LABELS[::-1]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_of_the_memory_changes_nothing(kind: str) -> None:
    model, plain, targets = decoder(kind), memory(), Targets.of(LABELS, CHARSET)
    assert plain.padding is not None
    disturbed = Memory(plain.tokens.masked_fill(plain.padding[..., None], 99.0), plain.padding)
    with torch.inference_mode():
        torch.testing.assert_close(model.decode(disturbed), model.decode(plain))
        torch.manual_seed(2)
        before = model.loss(plain, targets)
        torch.manual_seed(2)
        torch.testing.assert_close(model.loss(disturbed, targets), before)
        unpadded = Memory(plain.tokens[:1, :4], None)
        alone = Memory(plain.tokens[:1], plain.padding[:1])
        torch.testing.assert_close(model.decode(unpadded), model.decode(alone))


@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_label_in_the_batch_changes_nothing_for_the_others(kind: str) -> None:
    """The loss of a batch is the mean over its labels' characters; a label's part must not depend on its neighbours."""
    model, seen = decoder(kind, permutations=1), memory()
    assert seen.padding is not None

    def summed(rows: list[int]) -> torch.Tensor:
        targets = Targets.of([LABELS[row] for row in rows], CHARSET)
        counted = (targets.outputs != targets.padding).sum()
        assert seen.padding is not None
        return model.loss(Memory(seen.tokens[rows], seen.padding[rows]), targets) * counted

    with torch.inference_mode():
        torch.testing.assert_close(summed([0, 1, 2]), summed([0]) + summed([1]) + summed([2]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_trained(kind: str) -> None:
    model = decoder(kind)
    model.loss(memory(), Targets.of(LABELS, CHARSET)).backward()
    # Classes that no label holds learn through the softmax; embeddings of absent characters and far positions do not.
    idle = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert idle == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [0, 2, None, 99])
def test_never_reads_beyond_the_limit(kind: str, limit: int | None) -> None:
    model = decoder(kind)
    with torch.no_grad():
        model.head.bias[0] = -100  # never ends by itself
        shape = model.decode(memory(), limit).shape
    assert shape == (len(LABELS), min(7 if limit is None else limit, 7) + 1, CHARSET.classes)


@pytest.mark.parametrize("kind", KINDS)
def test_stops_when_every_label_has_ended(kind: str) -> None:
    model = decoder(kind, refinements=0)
    with torch.no_grad():
        model.head.bias[0] = 100
        assert model.decode(memory()).shape[1] == 1


@pytest.mark.parametrize("layers", [1, 3])
def test_nrtr_reads_the_same_with_and_without_what_it_keeps(layers: int) -> None:
    model = decoder("nrtr", layers=layers)
    assert isinstance(model, NrtrDecoder)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.inference_mode():
        cached = model.decode(memory())
        inputs = F.pad(cached.argmax(-1)[:, :-1], (1, 0), value=CHARSET.begin)
        length = inputs.shape[1]
        assert length > 3
        for position in range(length):
            # One forward over all that was read so far: the loss of the next character names its probability.
            outputs = torch.full((len(LABELS), position + 1), CHARSET.padding)
            outputs[:, position] = cached[:, position].argmax(-1)
            targets = Targets(inputs[:, : position + 1], outputs, CHARSET.end, CHARSET.padding)
            expected = F.cross_entropy(cached[:, position], outputs[:, position])
            torch.testing.assert_close(model.loss(memory(), targets), expected, atol=1e-5, rtol=1e-4)


def test_nrtr_never_looks_ahead() -> None:
    model = decoder("nrtr")
    first, other = Targets.of(["abcd"], CHARSET), Targets.of(["abch"], CHARSET)
    outputs = first.outputs.clone()
    outputs[:, 3:] = first.padding
    one, two = (Targets(targets.inputs, outputs, first.end, first.padding) for targets in (first, other))
    with torch.inference_mode():
        assert model.loss(memory(1), one) == model.loss(memory(1), two)


def test_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="nrtr, parallel, parseq"):
        decoder("trba")


DIM = 8


def test_a_pooled_decoder_reads_only_the_vector_and_keeps_the_images_mean() -> None:
    settings = DecoderSettings(kind="nrtr", dim=16, heads=2, feed_forward=16)
    decoder = build_decoder(settings, 5, DIM, MemorySettings(kind="pooled", tokens=3)).eval()
    assert isinstance(decoder, PooledDecoder)
    vectors = torch.randn(2, 1, DIM)
    assert decoder.unfold(Memory(vectors)).tokens.shape == (2, 3, DIM)
    assert "image_mean" in decoder.state_dict()
    first, second = decoder.decode(Memory(vectors))
    assert not torch.allclose(first, second)


def test_a_changed_charset_carries_characters_over_within_a_pooled_decoder() -> None:
    settings = DecoderSettings(kind="nrtr", dim=16, heads=2, feed_forward=16)
    source, target = (build_decoder(settings, 3, DIM, MemorySettings(kind="pooled")) for _ in range(2))
    # As many characters in another order: every shape fits, so only names tell that rows have to move.
    coverage = load_weights(target, source.state_dict(), Charset("abc"), Charset("cab"))
    assert set(coverage.partial) == {"decoder.head.weight", "decoder.head.bias", "decoder.embedding.weight"}
    head = "decoder.head.weight"
    assert torch.equal(target.state_dict()[head][1], source.state_dict()[head][3])  # c
