"""The nearest words of crops: ranks worked out by hand, each family of CLIPs, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import UserError
from dptr.cli import run_command
from dptr.trainer import nearest_words as module
from dptr.trainer.nearest_words import CENTRED, nearest_words

WORDS = ["red", "sun", "of", "not", "as", "If"]
Draw = Callable[[Path, Sequence[str]], Path]


def test_a_rank_counts_the_words_that_are_nearer_than_its_own() -> None:
    words = np.eye(3, dtype=np.float32)
    images = np.array([[0.9, 0.1, 0.2], [0.9, 0.1, 0.2], [0.5, 0.5, 0.1]], np.float32)
    # The last image is as near to word 1 as to its own, word 0: not its own alone.
    assert module._ranks(images, words, np.array([0, 1, 0]), at_once=2).tolist() == [0, 2, 1]


def test_crops_of_words_that_the_bundled_clip_learnt_find_them(tmp_path: Path, draw_crops: Draw) -> None:
    draw_crops(tmp_path, WORDS)
    for number, word in enumerate(WORDS):
        image = Image.new("RGB", (96, 36), "white")
        ImageDraw.Draw(image).text((8, 4), word, fill="black", font_size=24)
        image.save(tmp_path / f"{number}.png")
    images = WordImages.open_as_written([tmp_path])
    found = nearest_words("tiny", {"drawn": images}, ["street", "Red"])
    assert found.words == 7, "case is folded"
    assert found.crops == {"drawn": 6}
    assert found.first[CENTRED[0]]["drawn"] >= 4
    assert found.among[CENTRED[0]]["drawn"] >= found.first[CENTRED[0]]["drawn"]


@pytest.mark.parametrize(
    "family",
    ["clip", "metaclip_2", "chinese_clip", "altclip", "siglip", "siglip, case left", "siglip2", "m-clip", "sentence"],
)
def test_every_family_is_compared(
    family: str, small_clip: Callable[[str], str], tmp_path: Path, draw_crops: Draw
) -> None:
    images = WordImages.open_as_written([draw_crops(tmp_path, WORDS)])
    found = nearest_words(small_clip(family), {"drawn": images})
    assert (found.words, found.crops["drawn"], found.rejected) == (6, 6, 0)
    for kind in CENTRED:
        assert 0 <= found.first[kind]["drawn"] <= found.among[kind]["drawn"] <= 6


def test_words_that_the_tokenizer_cannot_write_are_rejected(
    small_clip: Callable[[str], str], tmp_path: Path, draw_crops: Draw
) -> None:
    images = WordImages.open_as_written([draw_crops(tmp_path, ["red", "Ω"])])
    found = nearest_words(small_clip("chinese_clip"), {"drawn": images})
    assert (found.words, found.rejected, found.crops["drawn"], found.quarantined) == (1, 1, 1, 1)
    only = WordImages.open_as_written([draw_crops(tmp_path / "only", ["Ω"])])
    with pytest.raises(UserError, match="no crop has a label"):
        nearest_words(small_clip("chinese_clip"), {"drawn": only})


def test_the_command_prints_a_table_and_figures(
    tmp_path: Path, draw_crops: Draw, capsys: pytest.CaptureFixture[str]
) -> None:
    crops = draw_crops(tmp_path / "crops", WORDS)
    (tmp_path / "words.txt").write_text("street\nred\n")
    command = ["evaluate", "--clip", "tiny", str(crops), "--lexicon", str(tmp_path / "words.txt"), "--quiet"]
    assert run_command(command) == 0
    assert "7 words to choose from" in capsys.readouterr().out
    assert run_command([*command, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["command"], figures["out"], figures["rows"], figures["words"]) == ("evaluate", "tiny", 6, 7)
    assert figures["sets"][str(crops)]["nothing"]["crops"] == 6
