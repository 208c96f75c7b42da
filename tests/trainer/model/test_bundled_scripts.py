"""The bundled recogniser of seven scripts: it has a name wherever a recogniser is named, and reads."""

import unicodedata
from pathlib import Path

import pytest
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

import dptr
from dptr.cli import run_command
from dptr.trainer.model.model_file import RECOGNISERS, ModelFile

WORDS = ["москва", "Библиотека", "Θεσσαλονίκη", "δρόμος", "Straße", "Bäckerei", "Đường", "مدرسة"]


def crop(word: str) -> Image.Image:
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 32)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(word))
    picture = Image.new("RGB", (right - left + 8, bottom - top + 8), "white")
    ImageDraw.Draw(picture).text((4 - left, 4 - top), word, font=font, fill="black")
    return picture


def test_words_of_several_scripts_are_read() -> None:
    read = [prediction.text for prediction in dptr.load("scripts").read([crop(word) for word in WORDS])]
    assert read == [unicodedata.normalize("NFKC", word) for word in WORDS]


def test_a_command_knows_it_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crop("москва").save(tmp_path / "sign.png")
    assert run_command(["read", "scripts", str(tmp_path / "sign.png"), "--workspace", str(tmp_path)]) == 0
    assert "москва" in capsys.readouterr().out


def test_its_charset_holds_each_script_that_it_is_said_to_read() -> None:
    known = set(ModelFile.open(RECOGNISERS["scripts"]).charset.characters)
    letters = {
        "Cyrillic": "яёЖ",
        "Greek": "ωΉς",
        "Hebrew": "אםת",
        "Devanagari": "कीं",
        "Thai": "กำ้",
        "Latin": "äßñở",
        "Arabic": "مدرسة",
    }
    assert all(set(unicodedata.normalize("NFKC", some)) <= known for some in letters.values())
