"""Validation crops are never trained on: pictures are compared by their bytes, whatever the path that names them."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dptr.cache.crops.dataset import WordImages, split, without_overlap
from dptr.cache.crops.writer import write_word_images
from dptr.cache.errors import UserError
from dptr.cache.progress import set_quiet
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (24, 8), (number, 128, 128)).save(stream, "PNG")
    return stream.getvalue()


def opened(*paths: Path) -> WordImages:
    return WordImages.open(paths, Charset.named("94"), Normalization())


def labels(images: WordImages) -> list[str]:
    return [sample.label for sample in images.samples]


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A PaddleOCR folder whose training and test lists are both read when the folder is named."""
    (tmp_path / "lab").mkdir()
    for number in range(10):
        (tmp_path / "lab" / f"{number}.png").write_bytes(picture(number))
    for name, numbers in (("train", range(7)), ("test", range(7, 10))):
        lines = [f"{number}.png\tw{number}\n" for number in numbers]
        (tmp_path / "lab" / f"rec_gt_{name}.txt").write_text("".join(lines))
    return tmp_path / "lab"


def test_the_test_list_of_the_training_folder_is_not_trained_on(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_quiet(False)
    training = without_overlap(opened(lab), opened(lab / "rec_gt_test.txt"))
    assert sorted(labels(training)) == [f"w{number}" for number in range(7)]
    assert "rejected: 3 of 10 training crops" in capsys.readouterr().err


def test_a_copy_in_another_form_under_another_label_is_found(lab: Path, tmp_path: Path) -> None:
    with write_word_images(tmp_path / "other.lmdb") as writer:
        for number in (3, 200):
            writer.write(picture(number), f"other{number}")
    assert labels(without_overlap(opened(tmp_path / "other.lmdb"), opened(lab))) == ["other200"]


def test_the_same_data_twice_is_rejected(lab: Path) -> None:
    with pytest.raises(UserError, match="all 10 training crops are validation crops"):
        without_overlap(opened(lab), opened(lab))


def test_data_apart_stay_as_they_are_and_unreadable_pictures_are_no_overlap(lab: Path, tmp_path: Path) -> None:
    with write_word_images(tmp_path / "other.lmdb") as writer:
        writer.write(picture(100), "apart")
    (lab / "0.png").unlink()
    training = opened(lab)
    assert without_overlap(training, opened(tmp_path / "other.lmdb")) is training
    shutil.copy(lab / "rec_gt_train.txt", tmp_path / "rec_gt_train.txt")
    os.link(lab / "1.png", tmp_path / "1.png")
    assert len(without_overlap(training, opened(tmp_path / "rec_gt_train.txt"))) == 9


def test_a_validation_set_without_a_readable_crop_fails_before_training(lab: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"no picture")
    (bad / "labels.tsv").write_text("a.png\ta\n")
    with pytest.raises(UserError, match=r"none of 1 validation crops can be read: image a\.png"):
        without_overlap(opened(lab), opened(bad))
    for number in range(10):
        (lab / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="validation crops can be read"):
        split(opened(lab), 0.2, seed=0)
