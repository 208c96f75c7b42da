"""A decoder of pooled vectors: what it reads, and what a changed charset leaves of it."""

from __future__ import annotations

import torch

from dptr.cache.text.charset import Charset
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Memory
from dptr.trainer.model.decoders.pooled import PooledDecoder
from dptr.trainer.model.weight_loading import load_weights
from dptr.trainer.recipe import DecoderSettings, MemorySettings

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
