"""The CTC decoder: its loss is the probability of all alignments, its reading the collapsed best one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from dptr.cache.text.charset import Charset
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Memory, Targets
from dptr.trainer.model.decoders.ctc import CtcDecoder, ctc_loss
from dptr.trainer.recipe import DecoderSettings

CHARSET = Charset("abc")
SETTINGS = DecoderSettings(kind="ctc", dim=16, heads=2, layers=1, feed_forward=32, dropout=0.0, max_label_length=6)


def decoder(seed: int = 0) -> CtcDecoder:
    torch.manual_seed(seed)
    built = build_decoder(SETTINGS, 3, 8)
    assert isinstance(built, CtcDecoder)
    return built.eval()


def collapse(ids: tuple[int, ...]) -> str:
    return "".join(CHARSET.characters[i - 1] for i, _ in itertools.groupby(ids) if i != 0)


@pytest.mark.parametrize("label", ["ab", "aa", "cab"])
def test_loss_sums_over_all_alignments(label: str) -> None:
    model, memory = decoder(), Memory(torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(1)))
    with torch.inference_mode():
        probabilities = model(memory)[0].softmax(-1)
        total = sum(
            math.prod(float(probabilities[position, i]) for position, i in enumerate(ids))
            for ids in itertools.product(range(4), repeat=5)
            if collapse(ids) == label
        )
        loss = model.loss(memory, Targets.of([label], CHARSET))
    assert float(loss) == pytest.approx(-math.log(total) / len(label), rel=1e-4)


def test_reads_the_collapsed_best_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    paths = torch.tensor([[1, 1, 0, 1, 2, 2], [0, 0, 0, 0, 0, 0], [3, 0, 3, 3, 0, 1], [1, 2, 3, 1, 2, 3]])
    monkeypatch.setattr(model, "forward", lambda memory: F.one_hot(paths, 4).float() * 5)
    logits = model.decode(Memory(torch.zeros(4, 6, 8)))
    assert [CHARSET.decode(row) for row in logits.argmax(-1).numpy()] == ["aab", "", "cca", "abcabc"]
    assert model.decode(Memory(torch.zeros(4, 6, 8)), 2).shape == (4, 3, 4)


def test_padding_changes_neither_loss_nor_reading() -> None:
    model, generator = decoder(), torch.Generator().manual_seed(2)
    tokens, padding = torch.randn(2, 7, 8, generator=generator), torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 5:] = True
    other = Memory(tokens.masked_fill(padding[..., None], 9.0), padding)
    alone, targets = Memory(tokens[:1, :5]), Targets.of(["ab"], CHARSET)
    with torch.inference_mode():
        row = Memory(other.tokens[:1], padding[:1])
        torch.testing.assert_close(model.loss(row, targets), model.loss(alone, targets))
        read, expected = model.decode(row), model.decode(alone)
    assert CHARSET.decode(read[0].argmax(-1).numpy()) == CHARSET.decode(expected[0].argmax(-1).numpy())


def test_learns_words_with_doubled_letters_by_heart() -> None:
    model, labels = decoder().train(), ["aab", "bcca", "a", "cab"]
    memory = Memory(torch.randn(4, 9, 8, generator=torch.Generator().manual_seed(3)))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        model.loss(memory, Targets.of(labels, CHARSET)).backward()
        optimizer.step()
    with torch.inference_mode():
        read = model.eval().decode(memory).argmax(-1).numpy()
    assert [CHARSET.decode(row) for row in read] == labels


@pytest.mark.parametrize("path", [[1, 1, 0, 2, 0], [0, 0, 0, 0, 0]])
def test_confidence_is_the_probability_of_the_alignment(monkeypatch: pytest.MonkeyPatch, path: list[int]) -> None:
    model, logits = decoder(), torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(4))
    for position, best in enumerate(path):
        logits[0, position, best] = 4.0
    monkeypatch.setattr(model, "forward", lambda memory: logits)
    confidences, ids = model.decode(Memory(torch.zeros(1, 5, 8))).softmax(-1).max(-1)
    text = CHARSET.decode(ids[0].numpy())
    probabilities = logits.softmax(-1).amax(-1)[0]
    # Of equal neighbours only the first counts as the character; the other belongs to the end.
    assert float(confidences[0, : len(text) + 1].prod()) == pytest.approx(float(probabilities.prod()), rel=1e-4)


def test_the_loss_of_few_classes_and_its_gradient_are_those_of_all() -> None:
    charset = Charset("".join(map(chr, range(0x4E00, 0x4E00 + 50))))
    targets = Targets.of([charset.characters[0] * 2 + "\u4e05", "\u4e07", charset.characters[9] * 7], charset)
    logits = torch.randn(3, 12, 51, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([12, 5, 12])  # the last label does not fit: it counts as nothing
    lengths = (targets.outputs != targets.padding).sum(1) - 1
    found, expected = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    whole = F.ctc_loss(
        expected.log_softmax(-1).transpose(0, 1), targets.outputs[:, :-1], tokens, lengths, zero_infinity=True
    )
    few = ctc_loss(found, targets, tokens)
    torch.testing.assert_close(few, whole)
    whole.backward()  # type: ignore[no-untyped-call]
    few.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found.grad, expected.grad)
    assert found.grad is not None
    assert float(found.grad[2].abs().max()) == 0.0


def test_a_reading_has_no_more_positions_than_its_longest_label_and_an_end() -> None:
    model = decoder()
    paths = torch.tensor([[1, 1, 0, 1, 2, 2], [0, 0, 0, 0, 3, 0]])
    read = model.greedy(F.one_hot(paths, 4).float() * 5)
    assert read.shape == (2, 4, 4)
    assert [CHARSET.decode(row) for row in read.argmax(-1).numpy()] == ["aab", "c"]
    assert read.argmax(-1)[1].tolist() == [3, 0, 0, 0]


def test_tokens_joined_in_numbers_are_those_that_a_graph_joins() -> None:
    model = decoder()
    logits = torch.randn(20, 9, 4, generator=torch.Generator().manual_seed(3)) * 3
    confidences, ids = model.greedy(logits).softmax(-1).max(-1)
    for row, probabilities in enumerate(logits.log_softmax(-1).numpy()):
        joined, certain = model.joined(probabilities)
        assert joined.tolist() == ids[row, : len(joined)].tolist()
        assert certain == pytest.approx(confidences[row, : len(joined)].numpy(), rel=1e-4)
        assert not ids[row, len(joined) :].any()
