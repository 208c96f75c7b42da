from __future__ import annotations

from itertools import groupby, product

import numpy as np
import pytest
import torch

from dptr.cache.errors import UserError
from dptr.cache.text.charset import Charset
from dptr.trainer.model import beam_search as word_search
from dptr.trainer.model.beam_search import search
from dptr.trainer.model.decoders.ctc import CtcDecoder
from dptr.trainer.model.language_model import CharacterModel
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.recipe import Recipe

CHARSET = Charset("abt")
WORDS = CharacterModel({"bat": 20.0, "tab": 1.0}, CHARSET)


def by_enumeration(columns: np.ndarray, words: CharacterModel) -> dict[tuple[int, ...], float]:
    """Every alignment of every text, added up; with what words make of the text."""
    sums: dict[tuple[int, ...], float] = {}
    for path in product(range(columns.shape[1]), repeat=len(columns)):
        text = tuple(of for of, _ in groupby(path) if of)
        sums[text] = sums.get(text, 0.0) + float(np.exp(sum(columns[i, of] for i, of in enumerate(path))))
    scores = {}
    for text, chance in sums.items():
        context, score = words.begin, 0.0
        for of in text:
            score += words.weight * (words.scores(np.array([context]), np.array([of]))[0] + word_search._BONUS)
            context = int(words.after(context, of))
        score += words.weight * words.scores(np.array([context]), np.array([0]))[0]
        scores[text] = chance * float(np.exp(score))
    total = sum(scores.values())
    return {text: score / total for text, score in scores.items()}


def random_columns(seed: int, columns: int) -> np.ndarray:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(columns, 4)).astype(np.float32))
    return logits.log_softmax(-1).numpy()


@pytest.mark.parametrize("seed", range(5))
def test_with_room_for_all_texts_the_search_adds_up_every_alignment(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_search, "_KEPT", 10_000)
    monkeypatch.setattr(word_search, "_BEHIND", 1000.0)
    columns = random_columns(seed, 5)
    expected = by_enumeration(columns, WORDS)
    (found,) = search([columns], WORDS)
    assert dict(found) == pytest.approx(expected, rel=1e-4)
    assert [share for _, share in found] == sorted((share for _, share in found), reverse=True)


def test_pictures_of_any_number_of_columns_are_read_side_by_side_as_alone() -> None:
    pictures = [random_columns(seed, columns) for seed, columns in enumerate((3, 9, 1, 6))]
    assert search(pictures, WORDS) == [search([picture], WORDS)[0] for picture in pictures]
    assert search([], WORDS) == []


def certain(text: str, blurred: dict[int, dict[str, float]]) -> np.ndarray:
    """Columns that say ``text`` with blanks in between, and at some characters something else beside it."""
    rows = []
    for place, character in enumerate(text):
        row = np.full(4, 1e-6)
        for seen, chance in blurred.get(place, {character: 1.0}).items():
            row[CHARSET.encode(seen)[0]] = chance
        rows += [row, np.array([1.0, 1e-6, 1e-6, 1e-6])]
    probabilities = np.array(rows)
    return np.log(probabilities / probabilities.sum(1, keepdims=True)).astype(np.float32)


def best(columns: np.ndarray) -> str:
    return CHARSET.decode(np.array(search([columns], WORDS)[0][0][0]))


def test_words_decide_where_the_picture_is_blurred_and_only_there() -> None:
    assert best(certain("bat", {0: {"t": 0.6, "b": 0.4}})) == "bat"
    assert best(certain("tat", {})) == "tat"
    assert best(certain("tat", {1: {"a": 0.6, "b": 0.4}})) == "tat"


def recogniser(kind: str = "ctc", charset: Charset = CHARSET) -> Recognizer:
    recipe = Recipe.model_validate(
        {
            "decoder": {"kind": kind, "dim": 16, "heads": 2, "layers": 1, "feed_forward": 16, "memory_dim": 16},
            "encoder": {"kind": "convolution", "dim": 16, "channels": 8, "image_height": 32, "image_width": 64},
            "fmu": {"kind": "none"},
        }
    )
    torch.manual_seed(0)
    return Recognizer(recipe, charset, 16).eval()


def test_a_reading_with_words_says_how_sure_it_is_of_every_character() -> None:
    model = recogniser()
    images = torch.randint(0, 256, (6, 3, 32, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    plain = model.read(images)
    model.prefer_words({"bat": 20.0})
    preferred = model.read(images)
    for prediction in preferred:
        assert len(prediction.character_confidences) == len(prediction.text)
        assert 0 < prediction.confidence <= float(np.prod(prediction.character_confidences)) + 1e-9 <= 1 + 1e-6
    assert preferred != plain
    model.prefer_words(None)
    assert model.read(images) == plain


def test_sure_predictions_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = recogniser()
    images = torch.randint(0, 256, (4, 3, 32, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    plain = model.read(images)
    model.prefer_words({"bat": 20.0})
    for sure in ("_SURE", "_SURE_OF_CODES"):
        monkeypatch.setattr(f"dptr.trainer.model.recognizer.{sure}", 0.0)
    assert model.read(images) == plain


def test_words_are_rejected_where_the_decoder_is_not_ctc() -> None:
    with pytest.raises(UserError, match="needs a CTC decoder"):
        recogniser("parseq").prefer_words({"bat": 1.0})


def test_codes_are_corrected_by_their_format() -> None:
    charset = Charset("0123456789ABCDEFGHIJO")
    model = recogniser(charset=charset)
    assert isinstance(model.decoder, CtcDecoder)
    columns = np.full((1, 12, 22), 1e-6, np.float32)
    columns[0, 1::2, 0] = 1
    for place, character in enumerate("C0789A"):
        columns[0, 2 * place, charset.encode(character)[0]] = 0.6 if place == 1 else 1
    columns[0, 2, charset.encode("O")[0]] = 0.4
    rng = np.random.default_rng(0)
    plates = {"".join(rng.choice(list("ABCDEO"), 2)) + str(rng.integers(100, 1000)) + "A": 1.0 for _ in range(60)}
    log_probabilities = np.log(columns)
    assert model._in_columns(model.decoder, log_probabilities)[0].text == "C0789A"
    assert "CO789A" not in plates
    model.prefer_words(plates)
    assert model._in_columns(model.decoder, log_probabilities)[0].text == "CO789A"
    model.prefer_words(dict(list(plates.items())[:29]))
    assert model._codes is None, "too few show no format"
