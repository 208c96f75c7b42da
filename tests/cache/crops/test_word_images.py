from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import tarfile
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dptr.cache.crops.dataset import (
    UnreadableImage,
    WordImages,
    pack_crops,
    preprocess,
    split,
    without_overlap,
    write_word_images,
)
from dptr.cache.crops.samples import Sample
from dptr.cache.errors import UserError
from dptr.cache.progress import set_quiet
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization

LABELS = ["Open", "24/7", "Exit", 'a"b,c']
CHARSET = Charset.named("94")


def encoded(colour: int = 0, size: tuple[int, int] = (40, 16)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (colour, 128, 255 - colour)).save(stream, "PNG")
    return stream.getvalue()


def open_images(*paths: Path, charset: Charset = CHARSET, **normalization: object) -> WordImages:
    return WordImages.open(list(paths), charset, Normalization(**normalization))  # type: ignore[arg-type]


def write_images(folder: Path) -> list[str]:
    (folder / "images").mkdir(parents=True)
    names = [f"images/word_{index}.png" for index in range(len(LABELS))]
    for index, name in enumerate(names):
        (folder / name).write_bytes(encoded(index * 50))
    return names


def write_lmdb(path: Path, entries: dict[str, bytes]) -> Path:
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key.encode(), value)
    return path


def as_tsv(folder: Path, names: list[str]) -> None:
    (folder / "labels.tsv").write_text("".join(f"{n}\t{x}\n" for n, x in zip(names, LABELS, strict=True)))


def as_icdar(folder: Path, names: list[str]) -> None:
    lines = ['{}, "{}"\r\n'.format(n, x.replace('"', '\\"')) for n, x in zip(names, LABELS, strict=True)]
    (folder / "gt.txt").write_bytes(b"\xef\xbb\xbf" + "".join(lines).encode())


def as_json_lines(folder: Path, names: list[str]) -> None:
    rows = [json.dumps({"image": n, "label": x}) + "\n" for n, x in zip(names, LABELS, strict=True)]
    (folder / "labels.jsonl").write_text("".join(rows))


def as_paddle(folder: Path, names: list[str]) -> None:
    (folder / "rec_gt_train.txt").write_text("".join(f"{n}\t{x}\n" for n, x in zip(names, LABELS, strict=True)))


def as_paddle_from_above(folder: Path, names: list[str]) -> None:
    as_paddle(folder, [f"{folder.name}/{name}" for name in names])


@pytest.mark.parametrize("write_labels", [as_tsv, as_icdar, as_json_lines, as_paddle, as_paddle_from_above])
def test_every_label_file_gives_the_same_samples(write_labels, tmp_path):
    folder = tmp_path / "crops"
    write_labels(folder, write_images(folder))
    images = open_images(folder)
    assert [sample.label for sample in images.samples] == LABELS
    assert [images.image(i).getpixel((0, 0))[0] for i in range(4)] == [0, 50, 100, 150]
    assert not images.rejected.total
    assert not images.changed.total


def as_tar(folder: Path, out: Path) -> None:
    with tarfile.open(out, "w") as archive:
        for index, label in enumerate(LABELS):
            for suffix, content in (("png", encoded(index * 50)), ("json", json.dumps({"label": label}).encode())):
                member = tarfile.TarInfo(f"train/{index:04d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def as_hugging_face_parquet(folder: Path, out: Path) -> None:
    rows = [{"image": {"bytes": encoded(i * 50), "path": None}, "text": label} for i, label in enumerate(LABELS)]
    pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=3)


@pytest.mark.parametrize(
    ("write", "name"),
    [(pack_crops, "a.lmdb"), (pack_crops, "a.parquet"), (as_tar, "a.tar"), (as_hugging_face_parquet, "b.parquet")],
)
def test_every_archive_gives_the_same_samples(write, name, tmp_path):
    folder = tmp_path / "crops"
    as_tsv(folder, write_images(folder))
    (tmp_path / "packed").mkdir()
    write(folder, tmp_path / "packed" / name)
    for path in (tmp_path / "packed" / name, tmp_path / "packed"):
        images = open_images(path)
        assert [sample.label for sample in images.samples] == LABELS
        assert [images.image(i).getpixel((0, 0))[0] for i in (3, 0, 2, 1)] == [150, 0, 100, 50]


def test_damaged_lmdb_is_counted_and_named_and_the_rest_is_used(tmp_path):
    good = encoded(200)
    path = write_lmdb(
        tmp_path / "bad.lmdb",
        {
            "num-samples": b"12",  # too many: 9 to 12 are not there
            "image-000000001": good, "label-000000001": b"fine",
            "label-000000002": b"noimage",
            "image-000000003": good,
            "image-000000004": good, "label-000000004": "h\u00f4tel".encode(),
            "image-000000005": good, "label-000000005": b"x" * 26,
            "image-000000006": good, "label-000000006": b"two words",
            "image-000000007": good[: len(good) // 2], "label-000000007": b"truncated",
            "image-000000008": encoded(size=(40, 1)), "label-000000008": b"flat",
        },
    )  # fmt: skip
    images = open_images(path)
    assert [sample.label for sample in images.samples] == ["fine", "twowords", "truncated", "flat"]
    assert images.rejected.counts == {
        "label or image is missing": 6,
        "not in the charset": 1,
        "longer than 25 characters": 1,
    }
    assert images.changed.counts == {"spaces removed": 1}
    assert "image-000000004" in images.rejected.examples["not in the charset"][0]
    assert "two words" in images.changed.examples["spaces removed"][0]
    assert images.image(0).size == (40, 16)
    for index, key in ((2, "image-000000007"), (3, "image-000000008")):
        with pytest.raises(UnreadableImage, match=f"{key} of .*bad.lmdb"):
            images.image(index)


def test_spaces_stay_in_lines_where_the_normalization_keeps_them(tmp_path):
    path = write_lmdb(
        tmp_path / "x.lmdb", {"num-samples": b"1", "image-000000001": encoded(), "label-000000001": b"two words"}
    )
    images = open_images(path, charset=Charset(CHARSET.characters + " "), keep_spaces=True)
    assert images.samples == [Sample(str(path), "image-000000001", "two words")]


def test_lmdb_cut_short_is_an_error_and_not_a_crash(tmp_path):
    path = write_lmdb(
        tmp_path / "cut.lmdb",
        {"num-samples": b"1", "label-000000001": b"a", "image-000000001": bytes(200_000)},
    )
    data = (path / "data.mdb").read_bytes()
    (path / "data.mdb").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cannot be read as LMDB"):
        open_images(path)


def test_portrait_is_kept_and_a_missing_file_is_found_when_read(tmp_path):
    (tmp_path / "tall.png").write_bytes(encoded(size=(10, 60)))
    (tmp_path / "labels.tsv").write_text("tall.png\tl\ngone.png\tx\n")
    images = open_images(tmp_path)
    assert images.image(0).size == (10, 60)
    with pytest.raises(UnreadableImage, match=r"gone\.png"):
        images.image(1)


def test_lines_that_cannot_be_read_are_counted(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "labels.tsv").write_bytes(b"a.png\tok\nnothing here\na.png\t\xff\xfe\n\na.png\t \n")
    images = open_images(tmp_path)
    assert [sample.label for sample in images.samples] == ["ok"]
    assert images.rejected.counts == {"line is not understood": 2, "empty": 1}
    assert "line 2" in images.rejected.examples["line is not understood"][0]


def test_folder_without_labels_ends_in_one_line_with_the_accepted_forms(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    with pytest.raises(UserError) as caught:
        open_images(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for form in ("LMDB", "labels.tsv", "gt.txt", "labels.jsonl", "rec_gt_*.txt", "Parquet", ".tar"):
        assert form in message


def test_label_file_whose_images_are_elsewhere_is_an_error(tmp_path):
    (tmp_path / "labels.tsv").write_text("a.png\tx\n")
    with pytest.raises(UserError, match="names no existing image"):
        open_images(tmp_path)


def test_no_usable_label_says_why(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "labels.tsv").write_text("a.png\t漢字\n")
    with pytest.raises(UserError, match=r"not in the charset \(1\)"):
        open_images(tmp_path)


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_workers_read_what_was_opened_before_they_started(start, tmp_path):
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} here")
    folder = tmp_path / "crops"
    as_tsv(folder, write_images(folder))
    pack_crops(folder, tmp_path / "x.lmdb")
    images = open_images(tmp_path / "x.lmdb")
    assert images.image(0).getpixel((0, 0))[0] == 0
    with multiprocessing.get_context(start).Pool(1) as pool:
        assert pool.apply(images.image, (1,)).getpixel((0, 0))[0] == 50


def many(tmp_path: Path, count: int) -> WordImages:
    with write_word_images(tmp_path / f"{count}.lmdb") as writer:
        for index in range(count):
            writer.write(encoded(index % 256), f"w{index}")
    return open_images(tmp_path / f"{count}.lmdb")


def test_split_depends_on_seed_and_keys_and_nothing_is_lost(tmp_path):
    images = many(tmp_path, 200)
    train, validation = split(images, 0.1, seed=1)
    assert len(validation) == pytest.approx(20, abs=10)
    assert {*train.samples, *validation.samples} == set(images.samples)
    assert validation.samples == split(images, 0.1, seed=1)[1].samples
    assert validation.samples != split(images, 0.1, seed=2)[1].samples
    reordered = images.only(range(199, -1, -1))
    assert set(split(reordered, 0.1, seed=1)[1].samples) == set(validation.samples)
    fewer = images.only(range(100))
    assert set(split(fewer, 0.1, seed=1)[1].samples) == {*validation.samples} & {*fewer.samples}, "growth moves none"
    assert validation.image(0).getpixel((0, 0))[0] == int(validation.samples[0].label[1:])


def test_of_few_images_at_least_one_is_for_validation(tmp_path):
    assert [len(side) for side in split(many(tmp_path, 10), 0.001, seed=0)] == [9, 1]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_split_never_leaves_a_side_empty(share, tmp_path):
    with pytest.raises(UserError, match="cannot keep"):
        split(many(tmp_path, 10), share, seed=0)


def test_preprocess_gives_channels_first_and_keeps_left_and_right():
    image = Image.new("RGB", (60, 20), (255, 0, 0))
    image.paste((0, 0, 255), (30, 0, 60, 20))
    pixels = preprocess(image)
    assert pixels.shape == (3, 32, 128)
    assert pixels.dtype == np.uint8
    assert pixels.flags["C_CONTIGUOUS"]
    assert (pixels[:, 16, 0].tolist(), pixels[:, 16, -1].tolist()) == ([255, 0, 0], [0, 0, 255])
    assert preprocess(image, 48, 160).shape == (3, 48, 160)


def test_packing_leaves_out_what_cannot_be_read_and_says_so(tmp_path):
    folder = tmp_path / "crops"
    as_tsv(folder, write_images(folder))
    (folder / "images/word_2.png").write_bytes(b"not an image")
    summary = pack_crops(folder, tmp_path / "x.lmdb")
    assert summary.rows == 3
    assert summary.rejected.counts == {"unreadable image": 1}
    assert "word_2.png" in summary.rejected.examples["unreadable image"][0]
    assert [sample.label for sample in open_images(tmp_path / "x.lmdb").samples] == ["Open", "24/7", 'a"b,c']
    with pytest.raises(UserError, match="is there already"):
        pack_crops(folder, tmp_path / "x.lmdb")
    with pytest.raises(UserError, match="neither"):
        pack_crops(folder, tmp_path / "x.zip")


def test_packing_nothing_is_an_error_and_leaves_nothing(tmp_path):
    folder = tmp_path / "crops"
    as_tsv(folder, write_images(folder))
    for path in (folder / "images").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="no image"):
        pack_crops(folder, tmp_path / "x.lmdb")
    assert not list(tmp_path.glob("*x.lmdb*"))


def test_a_large_lmdb_outgrows_its_first_map(tmp_path, monkeypatch):
    monkeypatch.setattr("dptr.cache.crops.lmdb_form._FIRST_MAP_BYTES", 1 << 16)
    with write_word_images(tmp_path / "x.lmdb") as writer:
        for index in range(1200):
            writer.write(bytes(1000), f"w{index}")
    assert len(open_images(tmp_path / "x.lmdb")) == 1200


def test_a_charset_of_one_case_folds_labels_and_counts_them(tmp_path):
    as_tsv(tmp_path, write_images(tmp_path))
    images = open_images(tmp_path, charset=Charset.named("36"))
    assert [sample.label for sample in images.samples] == ["open", "exit"]
    assert images.changed.counts == {"case folded, as the charset has one case only": 2}
    assert images.rejected.counts == {"not in the charset": 2}


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
