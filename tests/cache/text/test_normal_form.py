"""The Unicode normal form of labels belongs to the charset of a store or run, and every command takes it from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from dptr.cache.crops.dataset import WordImages
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.text.prompt_store import settle_charset
from dptr.trainer.commands.options import measuring_normalization, training_normalization
from dptr.trainer.evaluate import ReadImages
from dptr.trainer.metrics import score_as_written
from dptr.trainer.model.recognizer import Prediction
from dptr.trainer.predictions import keep_predictions
from dptr.trainer.recipe import Recipe

LIGATURE = "ﬁn"  # NFKC makes "fin" of it


class Manifest:
    """What settling a charset needs of a store."""

    def __init__(self, **normalization: Any) -> None:
        self.identity: dict[str, Any] = {"normalization": Normalization(**normalization).identity()}

    def require_equal(self, folder: Path, identity: dict[str, Any]) -> None:
        assert {name: self.identity[name] for name in identity} == identity


@pytest.mark.parametrize("form", ["nfc", "none"])
def test_a_store_keeps_its_normal_form_with_its_charset_and_training_takes_it(form: Any, tmp_path: Path) -> None:
    manifest = Manifest(unicode=form)
    for _ in range(2):
        settle_charset(tmp_path, manifest, Charset("ﬁn"), learnt=False)  # type: ignore[arg-type]
    kept = Charset.from_text(manifest.identity["charset"])
    assert (kept.characters, kept.unicode) == ("ﬁn", form)
    Image.new("RGB", (24, 8)).save(tmp_path / "a.png")
    (tmp_path / "labels.tsv").write_text(f"a.png\t{LIGATURE}\n")
    for normalization in (training_normalization(Recipe(), kept), measuring_normalization(kept)):
        images = WordImages.open([tmp_path], normalization.charset(kept), normalization)
        assert [sample.label for sample in images.samples] == [LIGATURE]
        assert not images.changed.total


def test_charsets_in_nfkc_are_written_as_before_and_others_say_their_form() -> None:
    assert Charset("ab").text == "ab"
    for charset in (Charset("ab", unicode="nfc"), Charset(("a", "n\u0308"), "grapheme", unicode="none")):
        assert Charset.from_text(charset.text) == charset
        assert charset.with_more(["c"]).unicode == charset.unicode
    assert Normalization(unicode="nfc").charset(Charset("ab")).unicode == "nfc"


def test_truths_and_predictions_are_compared_in_one_form(tmp_path: Path) -> None:
    read = ReadImages(["a", "b"], ["fin", LIGATURE], [Prediction(LIGATURE, 1.0, []), Prediction("fin", 1.0, [])])
    assert pq.read_table(keep_predictions(tmp_path, "nfkc", read))["correct"].to_pylist() == [True, True]
    assert score_as_written(read.ground_truths, ["fin", "fin"]).score.accuracy == 1.0  # type: ignore[union-attr]
    exact = ReadImages(read.keys, read.ground_truths, read.predictions, form=Normalization(unicode="nfc"))
    assert pq.read_table(keep_predictions(tmp_path, "nfc", exact))["correct"].to_pylist() == [False, False]
    scored = score_as_written(read.ground_truths, ["fin", "fin"], normalization=Normalization(unicode="nfc")).score
    assert scored is not None
    assert scored.accuracy == 0.5
