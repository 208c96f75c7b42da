"""What the bundled recogniser is trained on: words, fonts, and the parting of real crops."""

from __future__ import annotations

import random
import runpy
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dptr.cache.crops.dataset import WordImages
from dptr.cache.text.charset import Charset
from dptr.pipeline.rendering.fonts import packaged_fonts

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "reader"


def test_texts_are_in_the_charset_and_the_same_for_a_seed() -> None:
    words = runpy.run_path(str(FOLDER / "words.py"))
    every = []
    for _ in range(2):
        made = words["Texts"](["exit", "open", "station"], ["the", "of"], random.Random(3))
        lists = (made.miscellaneous(), made.lines(), made.receipts(), made.documents())
        every.append([make() for makers in lists for _, make in makers] + [made.plate() for _ in range(20)])
    assert every[0] == every[1]
    assert all(text and not Charset.named("94+space").missing(text) for text in every[0])
    assert any(" " in text for text in every[0])
    assert all((text.isalnum() and text.isupper()) or text.isdigit() for text in every[0][-20:])
    cases = {words["in_case"]("exit", random.Random(seed)) for seed in range(60)}
    assert {"EXIT", "Exit", "exit"} <= cases


def test_article_and_card_numbers_end_in_their_check_digit() -> None:
    words = runpy.run_path(str(FOLDER / "words.py"))
    assert [words["_with_ean_digit"](digits) for digits in ("400638133393", "9638507")] == ["4006381333931", "96385074"]
    assert words["_with_luhn_digit"]("7992739871") == "79927398713"


def test_preferred_words_count_by_frequency_and_none_has_a_digit(tmp_path: Path) -> None:
    pytest.importorskip("wordfreq")
    count = runpy.run_path(str(FOLDER / "preferred_words.py"))
    (tmp_path / "a.txt").write_text("Exit\nexit\nthe\nsolarization\n")
    counts = count["count"]([tmp_path / "a.txt"])
    assert counts["the"] > counts["exit"] > counts["solarization"] == 1
    assert not any(character.isdigit() for word in counts for character in word)
    assert counts == count["count"]([tmp_path / "a.txt"])


@pytest.mark.parametrize(
    ("label", "prediction", "expected"),
    [
        ("TOTAL QTY: 5", "Total Qty: 5", "Total Qty: 5"),
        ("ROUNDING", "Roundlng", "Rounding"),
        ("CASH RM 5.00", "CASH RM5.00", "CASH RM 5.00"),
        ("ROUNDING ADJ", "Rounding Adj", "Rounding Adj"),
        ("CASHIER", "xyz", None),
    ],
)
def test_labels_in_capitals_take_the_case_that_is_read(label: str, prediction: str, expected: str | None) -> None:
    assert runpy.run_path(str(FOLDER / "recase.py"))["recased"](label, prediction, 0.34) == expected


def test_plain_fonts_are_legible_and_symbols_are_not() -> None:
    pytest.importorskip("font_roboto")
    fonts = runpy.run_path(str(FOLDER / "fonts.py"))
    plain = packaged_fonts().fonts[:12]
    assert (fonts["legibility"](plain) > fonts["PLAIN"]).all()


def test_letters_are_found_where_ctc_says_they_are() -> None:
    align = runpy.run_path(str(FOLDER / "parts.py"))["align"]
    # Columns:  -  a  a  -  b  b  -  b  ; the two b are separated by the blank between them.
    told = [0, 1, 1, 0, 2, 2, 0, 2]
    scores = np.full((8, 3), np.log(0.05))
    scores[np.arange(8), told] = np.log(0.9)
    middles, score = align(scores, np.array([1, 2, 2]), 0)
    assert middles.tolist() == [1.5, 4.5, 7.0]
    assert score == pytest.approx(np.log(0.9))
    # A label that is not there has no likely path, and letters that follow each other need no blank between.
    assert align(scores, np.array([2, 1, 1]), 0)[1] < -1
    assert align(scores[[1, 4]], np.array([1, 2]), 0)[0].tolist() == [0.0, 1.0]


def test_parts_of_a_crop_hold_the_letters_of_their_labels() -> None:
    parts = runpy.run_path(str(FOLDER / "parts.py"))
    pixels = np.repeat(np.array([10, 90, 170, 250], np.uint8), 10)
    image = Image.fromarray(np.broadcast_to(pixels, (12, 40)).copy()).convert("RGB")
    crop = parts["Cuttable"](image, "abcd", [0.0, 10.0, 20.0, 30.0, 40.0])
    level = dict(zip("abcd", (10, 90, 170, 250), strict=True))
    rng = np.random.default_rng(0)
    labels = set()
    for _ in range(40):
        picture, label = parts["draw"]([crop], rng)
        labels.add(label)
        assert picture.width == 10 * len(label)
        assert np.asarray(picture)[0, 5::10, 0].tolist() == [level[letter] for letter in label]
    assert len(labels) > 10


def test_crops_without_a_letter_are_an_error_and_nothing_is_written(tmp_path: Path, forked_python: str) -> None:
    crops, out = tmp_path / "blank", tmp_path / "parts.lmdb"
    crops.mkdir()
    Image.new("RGB", (60, 20), "white").save(crops / "0.png")
    (crops / "labels.tsv").write_text("0.png\tWORD\n", encoding="utf-8")
    done = subprocess.run([forked_python, FOLDER / "parts.py", crops, "-o", out], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("finds the letters of none of 1 crops: train it longer\n")
    assert not out.exists()


def test_crops_of_one_photo_receipt_or_plate_are_on_one_side() -> None:
    side_of = runpy.run_path(str(FOLDER / "crops.py"))["side_of"]
    same = {
        "iiit5k_train": [f"1009_{word}.png\tA{word}" for word in range(9)],
        "sroie_lines": [f"266_{line:03}.jpg\tTOTAL {line}" for line in range(60)],
        "ic15_train": [f"word_{number}.png\tA{number}" for number in range(640, 704)],
        "plates_ar": ["001.png\tKMH306", "140.png\tKMH306"],
    }
    for folder, rows in same.items():
        assert len({side_of(folder, row) for row in rows}) == 1, folder
    sides = [side_of("sroie_lines", f"{receipt:03}_000.jpg\tx") for receipt in range(300)]
    assert 75 <= sides.count("test") <= 117
    assert 12 <= sides.count("validation") <= 40
    assert side_of("svt_train", "0001.png\tROOM") == "train"


def test_each_crop_is_written_to_one_side(tmp_path: Path, forked_python: str) -> None:
    crops = tmp_path / "street"
    crops.mkdir()
    names = [f"{number}.png" for number in range(40)]
    for name in names:
        Image.new("RGB", (30, 12), "white").save(crops / name)
    (crops / "labels.tsv").write_text("".join(f"{name}\tword\n" for name in names), encoding="utf-8")
    subprocess.run([forked_python, FOLDER / "crops.py", crops, "-o", tmp_path / "real"], check=True)
    written = sorted((tmp_path / "real").glob("street-*.lmdb"))
    assert [path.stem for path in written] == ["street-test", "street-train", "street-validation"]
    assert sum(len(WordImages.open_as_written([path])) for path in written) == 40
