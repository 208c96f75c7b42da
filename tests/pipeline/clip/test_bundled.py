"""The bundled CLIP is what its model card says: small, described, and able to tell words apart that it never saw."""

from __future__ import annotations

import numpy as np
import pytest

from dptr.pipeline.clip.bundled import FOLDERS, is_held_out
from dptr.pipeline.clip.loading import ImageTower, load_clip
from dptr.pipeline.clip.text_tower import TextTower
from dptr.pipeline.rendering.crop import render_one
from dptr.pipeline.rendering.demo_data import standard_library_words
from dptr.pipeline.rendering.fonts import packaged_fonts
from dptr.pipeline.text.templates import Template

MEGABYTE = 1e6


@pytest.mark.parametrize(("name", "made_by"), [("tiny", "clip_retrieval"), ("scripts", "clip_retrieval")])
def test_all_its_files_together_are_small_and_described(name: str, made_by: str) -> None:
    folder = FOLDERS[name]
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"} <= names
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12 * MEGABYTE
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card
    assert f"benchmarks/{made_by}.py" in card


def test_nothing_is_shown_while_it_is_loaded(capfd: pytest.CaptureFixture[str]) -> None:
    load_clip("tiny")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_its_tokenizer_makes_pieces_of_words() -> None:
    tokens = load_clip("tiny").tokenizer.tokenize("unbelievably")
    assert 2 <= len(tokens) < len("unbelievably")
    assert tokens[-1].endswith("</w>")
    assert not any(token.endswith("</w>") for token in tokens[:-1])


def test_one_word_in_ten_was_kept_from_it_whatever_its_case() -> None:
    words = standard_library_words()
    assert 0.07 < np.mean([is_held_out(word) for word in words]) < 0.13
    assert all(is_held_out(word) == is_held_out(word.upper()) for word in words[:200])


RUSSIAN_AND_GREEK = """
время человек город страна работа школа вопрос музыка письмо дорога станция аптека магазин выход касса ресторан театр
улица площадь вокзал новость книга погода завод сестра χρόνος πόλη δρόμος σχολείο μουσική βιβλίο καιρός θάλασσα νησί
γράμμα δουλειά ερώτηση τραπέζι παράθυρο άνοιξη φαρμακείο είσοδος έξοδος σταθμός πλατεία
"""


def test_it_finds_the_prompt_of_a_word_and_a_font_it_never_saw() -> None:
    assert share_found("tiny", [word for word in standard_library_words() if is_held_out(word)][:200]) > 0.9


def test_the_one_of_seven_scripts_knows_more_than_latin_letters() -> None:
    """Common words, which it has seen; the other one has never seen their letters."""
    assert (
        share_found("scripts", RUSSIAN_AND_GREEK.split()) > 0.8 > 0.3 > share_found("tiny", RUSSIAN_AND_GREEK.split())
    )


def test_the_one_of_seven_scripts_has_a_piece_for_each_letter() -> None:
    tokenizer = load_clip("scripts").tokenizer
    for word in ("Дорога", "đường", "हिन्दी", "ถนน", "طريق"):
        assert len(tokenizer.tokenize(word)) == len(word)
    assert len(tokenizer.tokenize("街")) == 3


def share_found(name: str, words: list[str]) -> float:
    """Return how many of the words' crops find their own prompt first."""
    clip, fonts, rng = load_clip(name), packaged_fonts(), np.random.default_rng(0)
    tower, images = TextTower(clip, Template()), ImageTower(clip)
    texts = tower.encode(tower.tokenize([Template().prompt(word) for word in words])).pooled
    crops = [render_one(word, fonts.choose(word, rng), rng) for word in words]
    seen = images.encode(np.stack([images.preprocess(crop) for crop in crops]))[1]
    texts, seen = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (texts, seen))
    return float(((seen @ texts.T).argmax(1) == np.arange(len(words))).mean())
