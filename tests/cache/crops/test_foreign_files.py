"""Data sets as other programs leave them: labels come from the right place, and what is no data set is rejected."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dptr.cache.crops.dataset import WordImages, write_word_images
from dptr.cache.crops.form import NotLabelled
from dptr.cache.errors import UserError
from dptr.cache.progress import set_quiet
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.photos.photo_files import Photo, find_photos


def picture(red: int = 0, size: tuple[int, int] = (24, 8)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (red, 128, 128)).save(stream, "PNG")
    return stream.getvalue()


def opened(*paths: Path) -> WordImages:
    return WordImages.open(paths, Charset.named("94"), Normalization())


def labels(images: WordImages) -> list[str]:
    return [sample.label for sample in images.samples]


def colours(images: WordImages) -> list[int]:
    return [images.image(index).getpixel((0, 0))[0] for index in range(len(images))]


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def lmdb_of(path: Path, entries: dict[str, bytes]) -> Path:
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key.encode(), value)
    return path


BOXES = json.dumps([{"transcription": "page", "points": [[0, 0], [9, 0], [9, 9], [0, 9]], "difficult": False}])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of PPOCRLabel: two pages, one of them with two words cut out."""
    folder = tmp_path / "project"
    (folder / "crop_img").mkdir(parents=True)
    for page in ("a.png", "b.png"):
        (folder / page).write_bytes(picture(9, (200, 100)))
    for number in range(2):
        (folder / "crop_img" / f"a_crop_{number}.png").write_bytes(picture(100 + number))
    (folder / "Label.txt").write_text(f"project/a.png\t{BOXES}\nproject/b.png\t[]\n")
    (folder / "fileState.txt").write_text(f"{folder / 'a.png'}\t1\n{folder / 'b.png'}\t1\n")
    (folder / "Cache.cach").write_text("{}")
    (folder / "rec_gt.txt").write_text("crop_img/a_crop_0.png\tOpen\ncrop_img/a_crop_1.png\tExit\n")
    return folder


def test_a_project_of_ppocrlabel_gives_its_cut_out_words(project: Path) -> None:
    images = opened(project)
    assert (labels(images), colours(images)) == (["Open", "Exit"], [100, 101])


@pytest.mark.parametrize("name", [None, "Label.txt", "fileState.txt"])
def test_pages_of_ppocrlabel_are_never_labelled_crops(project: Path, name: str | None) -> None:
    (project / "rec_gt.txt").unlink()
    with pytest.raises(NotLabelled, match="Export Recognition Result"):
        opened(project / name if name else project)


def test_detection_labels_of_paddleocr_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "page.png").write_bytes(picture())
    (tmp_path / "label.txt").write_text(f"page.png\t{BOXES}\n")
    with pytest.raises(NotLabelled, match="boxes on whole pages"):
        opened(tmp_path)


def test_a_label_with_a_tab_is_rejected_and_not_joined(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "labels.tsv").write_text("a.png\tYou\ttrain\na.png\tgood\n")
    images = opened(tmp_path)
    assert labels(images) == ["good"]
    assert images.rejected.counts == {"line is not understood": 1}
    assert "line 1" in images.rejected.examples["line is not understood"][0]
    assert r"'a.png\tYou\ttrain'" in images.rejected.listed[0].reason


@pytest.mark.parametrize("line", ["a.png word", "10 20 30 40 word", '{"a.png": "word"}'])
def test_an_unknown_form_is_rejected_with_its_line_and_the_known_forms(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    (tmp_path / "gt.txt").write_text(line + "\n")
    with pytest.raises(NotLabelled) as caught:
        opened(tmp_path)
    assert f"line 1: line is not understood: {line!r}" in caught.value.problem
    assert "IMAGE, a tab and LABEL" in caught.value.advice


@pytest.mark.parametrize("order", [("png", "txt", "json"), ("json", "txt", "png"), ("txt", "json", "png")])
@pytest.mark.parametrize("metadata", [b'{"url": "http://a"}', b'{"label": "metadata"}', b"[1]", b"{"])
def test_metadata_beside_a_label_in_a_tar_changes_nothing(
    order: tuple[str, ...], metadata: bytes, tmp_path: Path
) -> None:
    parts = {"png": picture(), "txt": b"Open\n", "json": metadata}
    images = opened(tar_of(tmp_path / "a.tar", {f"0.{suffix}": parts[suffix] for suffix in order}))
    assert labels(images) == ["Open"]


def test_a_column_of_text_is_taken_before_one_of_integers(tmp_path: Path) -> None:
    rows = {"image": [picture(1), picture(2)], "label": [3, 4], "text": ["Open", "Exit"]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert labels(opened(tmp_path / "a.parquet")) == ["Open", "Exit"]
    pq.write_table(pa.table({"image": rows["image"], "label": rows["label"]}), tmp_path / "b.parquet")
    with pytest.raises(NotLabelled, match=r"with text, only image \(binary\), label \(int64\)"):
        opened(tmp_path / "b.parquet")


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_all_of_arrows_texts_and_bytes_are_read(kind: pa.DataType, tmp_path: Path) -> None:
    image = pa.array([picture(1), picture(2)], pa.binary_view() if kind == pa.string_view() else pa.large_binary())
    table = pa.table({"image": image, "label": pa.array(["Open", "Exit"]).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    images = opened(tmp_path / "a.parquet")
    assert (labels(images), colours(images)) == (["Open", "Exit"], [1, 2])
    assert [type(found) for found in find_photos([tmp_path])] == [Photo, Photo]


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("count", [None, b"1", b"3"])
def test_an_lmdb_is_read_completely_whatever_it_counts_from_and_to(
    first: int, count: bytes | None, tmp_path: Path
) -> None:
    entries = {} if count is None else {"num-samples": count}
    for number, label in enumerate(["a", "b", "c"]):
        entries[f"image-{first + number:09d}"], entries[f"label-{first + number:09d}"] = (
            picture(number),
            label.encode(),
        )
    images = opened(lmdb_of(tmp_path / "a.lmdb", entries))
    assert (labels(images), colours(images)) == (["a", "b", "c"], [0, 1, 2])
    assert not images.rejected.total


def test_an_lmdb_with_other_keys_is_rejected_with_one_of_them(tmp_path: Path) -> None:
    with pytest.raises(NotLabelled, match=r"no keys label-%09d; its first is 'crop_1'"):
        opened(lmdb_of(tmp_path / "a.lmdb", {"crop_1": picture(), "text_1": b"word"}))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root of two LMDBs."""
    for name in ("IIIT5K", "SVT"):
        lmdb_of(
            tmp_path / "root" / name,
            {"num-samples": b"1", "image-000000001": picture(), "label-000000001": name.encode()},
        )
    return tmp_path / "root"


@pytest.fixture(autouse=True)
def make_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    set_quiet(False)


def test_a_readme_beside_lmdbs_is_rejected_with_a_note(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "README.txt").write_text("Please cite us.\nThank You\ttrain\n")
    lmdb_of(root / "features", {"f1": b"1"})
    assert labels(opened(root)) == ["IIIT5K", "SVT"]
    assert "rejected: 2 files in" in capsys.readouterr().err


def test_files_of_macos_are_rejected(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "._crops.tar").write_bytes(b"\x00\x05\x16\x07")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._labels.parquet").write_bytes(b"\x00\x05\x16\x07")
    (root / "._labels.txt").write_bytes(b"\x00\x05\x16\x07")
    assert labels(opened(root)) == ["IIIT5K", "SVT"]
    assert "rejected: 3 files in" in capsys.readouterr().err
    assert labels(opened(root / "SVT")) == ["SVT"]


def test_metadata_of_img2dataset_beside_its_tars_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "downloaded"
    folder.mkdir()
    members = {"000.jpg": picture(), "000.txt": b"Open", "000.json": b'{"url": "http://a", "caption": "Open"}'}
    tar_of(folder / "00000.tar", members)
    pq.write_table(pa.table({"url": ["http://a"], "caption": ["Open"]}), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    assert labels(opened(folder)) == ["Open"]
    said = capsys.readouterr().err
    assert "rejected: 1 file in" in said
    assert "00000.parquet" in said


def test_where_nothing_else_is_there_the_foreign_file_is_the_error(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("Please cite us.\n")
    with pytest.raises(NotLabelled, match=r"README\.txt names no existing image.*Please cite us"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["a.parquet", "a.lmdb"])
def test_replaced_crops_are_read_anew_in_one_process(name: str, tmp_path: Path) -> None:
    def write(red: int) -> None:
        with write_word_images(tmp_path / name) as writer:
            writer.write(picture(red), f"w{red}")

    write(1)
    assert colours(opened(tmp_path / name)) == [1]
    (shutil.rmtree if name.endswith("lmdb") else os.unlink)(tmp_path / name)
    write(2)
    images = opened(tmp_path / name)
    assert (labels(images), colours(images)) == (["w2"], [2])


@pytest.mark.parametrize("suffix", ["zip", "parquet", "lmdb"])
def test_replaced_photos_are_read_anew_in_one_process(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"photos.{suffix}"

    def write(content: bytes) -> None:
        if suffix == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a.png", content)
        elif suffix == "parquet":
            pq.write_table(pa.table({"image": [content]}), path)
        else:
            lmdb_of(path, {"a": content})

    def read() -> list[bytes]:
        return [found.read() for found in find_photos([path]) if isinstance(found, Photo)]

    write(picture(1))
    assert read() == [picture(1)]
    (shutil.rmtree if suffix == "lmdb" else os.unlink)(path)
    write(picture(2))
    assert read() == [picture(2)]


def test_damage_is_no_foreign_file(root: Path) -> None:
    (root / "SVT" / "data.mdb").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read as LMDB"):
        opened(root)
