"""Recognisers of grapheme clusters and of right-to-left words: what is trained, kept, searched and read."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from dptr.cache.text.charset import Charset
from dptr.trainer.data.prompt_batches import _places_seen
from dptr.trainer.finetune import load_weights
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Targets
from dptr.trainer.model.language_model import CharacterModel
from dptr.trainer.model.recognizer import Recognizer, _among
from dptr.trainer.recipe import DecoderSettings, load_recipe

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
SIZES = [
    *("decoder.dim=48", "decoder.heads=2", "decoder.layers=1", "decoder.feed_forward=64", "encoder.dim=48"),
    *("encoder.channels=8", 'encoder.image_widths=""', "encoder.image_width=96", "encoder.image_height=32"),
]
HINDI = Charset(("क्ष", "त्रि", "य", "की"), "grapheme")


def drawn(word: str) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Draw the letters of a word from right to left, each by itself: (3, 32, 96)."""
    picture = Image.new("RGB", (96, 32), "white")
    pen, font, right = ImageDraw.Draw(picture), ImageFont.truetype(FONT, 18, layout_engine=ImageFont.Layout.BASIC), 92.0
    for letter in word:
        right -= font.getlength(letter) + 3
        pen.text((right, 3), letter, "black", font)
    return np.asarray(picture).transpose(2, 0, 1)


def test_a_ctc_decoder_learns_arabic_words_from_pictures_and_reads_them_as_they_are_written() -> None:
    words = ["سلام", "باب"]
    charset = Charset("".join(sorted(set("".join(words)))))
    torch.manual_seed(0)
    recognizer = Recognizer(load_recipe("reader", SIZES, {}), charset, 48)
    images = torch.from_numpy(np.stack([drawn(word) for word in words]))
    optimizer = torch.optim.AdamW(recognizer.parameters(), 3e-3)
    for _ in range(250):
        optimizer.zero_grad()
        recognizer.loss(images, Targets.of(words, charset)).backward()
        optimizer.step()
    recognizer.eval()
    predictions = recognizer.read(images)
    assert [prediction.text for prediction in predictions] == words
    with torch.inference_mode():
        columns = recognizer.decoder(recognizer.memory(images))[0].argmax(-1)
    first = charset.characters.index("س") + 1
    assert columns.nonzero().max() == (columns == first).nonzero().max(), "the first letter is the rightmost"


@pytest.mark.parametrize("order", ["visual", "logical"])
def test_each_unit_keeps_its_own_confidence_where_labels_are_read_from_the_right(order: str) -> None:
    charset = Charset("אב", order=order)  # type: ignore[arg-type]
    found = _among([((1, 2), 0.6), ((1,), 0.3), ((), 0.1)], charset)
    certain = dict(zip(found.text, found.character_confidences, strict=True))
    assert found.text == ("בא" if order == "visual" else "אב")
    assert certain["א"] == pytest.approx(0.9)
    assert certain["ב"] == pytest.approx(0.6 / 0.9)


def test_words_of_clusters_and_from_right_to_left_are_counted_as_they_are_emitted() -> None:
    hindi = CharacterModel({"क्षय": 5.0, "कीय": 1.0, "kk": 2.0}, HINDI)
    behind, alone = int(hindi.after(hindi.begin, 1)), hindi.begin
    scores = hindi.scores(np.array([behind, alone]), np.array([3, 3]))
    assert scores[0] > scores[1], "य follows क्ष and begins no word"
    hebrew = CharacterModel({"אב": 5.0}, Charset("אב"))
    starts = hebrew.scores(np.array([hebrew.begin] * 2), np.array([1, 2]))
    assert starts[1] > starts[0], "the last letter is the leftmost"


def test_rows_of_shared_units_are_carried_over_between_charsets_of_either_kind() -> None:
    settings = DecoderSettings(kind="ctc", dim=16, heads=2, layers=1, feed_forward=32, max_label_length=6)
    old, new = Charset("यक\u0940"), HINDI
    former, decoder = build_decoder(settings, 3, 8), build_decoder(settings, 4, 8)
    before = decoder.state_dict()["head.weight"].clone()
    coverage = load_weights(decoder, former.state_dict(), old, new)
    after = decoder.state_dict()["head.weight"]
    assert coverage.partial["head.weight"] == "1 of 4 characters"
    assert torch.equal(after[3], former.state_dict()["head.weight"][1])
    assert torch.equal(after[4], before[4]), "का is no letter of the old charset, though it can be spelt in it"


def test_columns_of_text_embeddings_stand_as_the_letters_are_seen() -> None:
    class Store:
        def labels_of(self, rows: object) -> list[str]:
            return ["שלום7", "abc", "بَّي"]

    places = _places_seen(Store(), np.arange(3))  # type: ignore[arg-type]
    assert [None if place is None else place.tolist() for place in places] == [[4, 3, 2, 1, 0], None, [3, 0, 1, 2]]
