"""Words that a recogniser prefers: given when it reads, or kept in its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dptr.cache.errors import UserError
from dptr.cache.text.lexicon import Lexicon
from dptr.trainer.export.export import export
from dptr.trainer.model.model_file import BUNDLED, ModelFile
from dptr.trainer.read import load


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("street\t3\nsquare\n", encoding="utf-8")
    return path


@pytest.fixture
def blurred() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (4, 8, 24, 3), np.uint8))


def test_an_export_keeps_words_and_reads_as_if_they_were_given(tmp_path: Path, words: Path, blurred) -> None:
    out = tmp_path / "with.safetensors"
    export(ModelFile.open(BUNDLED), "safetensors", out, lexicon=words)
    assert ModelFile.open(out).lexicon() == Lexicon({"street": 3, "square": 1})
    assert load(out).read(blurred) == load(BUNDLED, lexicon=words).read(blurred)
    assert load(out).read(blurred) != load(out, lexicon="none").read(blurred)
    # What is trained or exported further is the weights alone.
    assert ModelFile.open(out).weights().keys() == ModelFile.open(BUNDLED).weights().keys()


def test_a_further_export_keeps_them_unless_told_otherwise(tmp_path: Path, words: Path) -> None:
    first, again, without = (tmp_path / f"{name}.safetensors" for name in ("first", "again", "without"))
    export(ModelFile.open(BUNDLED), "safetensors", first, lexicon=words)
    export(ModelFile.open(first), "safetensors", again)
    export(ModelFile.open(first), "safetensors", without, lexicon="none")
    assert ModelFile.open(again).lexicon() == Lexicon({"street": 3, "square": 1})
    assert ModelFile.open(without).lexicon() is None


def test_words_are_given_as_counts_too(words: Path, blurred) -> None:
    assert load(lexicon={"street": 3, "square": 1}).read(blurred) == load(lexicon=words).read(blurred)


def test_a_form_that_keeps_no_words_rejects_them(tmp_path: Path, words: Path) -> None:
    with pytest.raises(UserError, match="onnx keeps no lexicon"):
        export(ModelFile.open(BUNDLED), "onnx", tmp_path / "x.onnx", lexicon=words)
