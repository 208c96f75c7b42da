"""Labelled crops that are damaged or lie: each ends in one line or is counted with its reason, and nothing hangs."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dptr.cache.crops import parquet_form
from dptr.cache.crops.dataset import UnreadableImage, WordImages
from dptr.cache.crops.form import state_of
from dptr.cache.errors import UserError
from dptr.cache.rejections import Rejection
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.photos.photo_files import Photo, find_photos
from dptr.pipeline.text.corpus_files import read_rows


def encoded() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 16)).save(stream, "PNG")
    return stream.getvalue()


def open_images(path: Path) -> WordImages:
    return WordImages.open([path], Charset.named("94"), Normalization())


def labels(images: WordImages) -> list[str]:
    return [sample.label for sample in images.samples]


def member(name: str, content: bytes = b"", **changes: object) -> tuple[tarfile.TarInfo, io.BytesIO]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in changes.items():
        setattr(info, key, value)
    return info, io.BytesIO(content)


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, io.BytesIO]) -> Path:
    with tarfile.open(path, "w") as archive:
        for info, content in members:
            archive.addfile(info, content)
    return path


def ten_crops(path: Path) -> Path:
    pairs = [(member(f"{n}.png", encoded()), member(f"{n}.txt", b"word")) for n in range(10)]
    return tar_of(path, *(part for pair in pairs for part in pair))


def test_a_tar_with_one_flipped_header_bit_is_rejected_and_loses_no_half_in_silence(tmp_path: Path) -> None:
    path = ten_crops(tmp_path / "a.tar")
    assert len(open_images(path)) == 10
    with tarfile.open(path) as archive:
        header = archive.getmembers()[10].offset
    data = bytearray(path.read_bytes())
    data[header + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"a.tar cannot be read as tar: torn at byte {header}"):
        open_images(path)
    found = list(find_photos([path]))
    assert [type(item) for item in found] == [Photo] * 5 + [Rejection]


def test_a_tar_cut_at_the_edge_of_a_member_is_rejected(tmp_path: Path) -> None:
    path = ten_crops(tmp_path / "a.tar")
    with tarfile.open(path) as archive:
        edge = archive.getmembers()[10].offset
    path.write_bytes(path.read_bytes()[:edge])
    with pytest.raises(UserError, match="torn at byte"):
        open_images(path)


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    links = [("out.txt", "/etc/hostname"), ("self.txt", "self.txt"), ("a.txt", "b.txt"), ("b.txt", "a.txt")]
    images = [member(f"{Path(name).stem}.png", encoded()) for name, _ in links]
    members = [member(name, type=kind, linkname=target) for name, target in links for kind in (tarfile.SYMTYPE,)]
    hard = member("hard.png", type=tarfile.LNKTYPE, linkname="hard.png"), member("hard.txt", b"word")
    good = member("good.png", encoded()), member("good.txt", b"good")
    found = open_images(tar_of(tmp_path / "a.tar", *images, *members, *hard, *good))
    assert labels(found) == ["good"]
    assert found.rejected.counts == {"label or image is missing": 5}


def test_json_nested_too_deep_is_one_rejected_label(tmp_path: Path) -> None:
    deep = b"[" * 100_000
    good = json.dumps({"label": "good"}).encode()
    parts = [member("a.png", encoded()), member("a.json", deep), member("b.png", encoded()), member("b.json", good)]
    from_tar = open_images(tar_of(tmp_path / "a.tar", *parts))
    assert (labels(from_tar), from_tar.rejected.counts) == (["good"], {"label is no JSON": 1})
    (tmp_path / "b.png").write_bytes(encoded())
    (tmp_path / "labels.jsonl").write_bytes(deep + b'\n{"image": "b.png", "label": "good"}\n')
    from_lines = open_images(tmp_path / "labels.jsonl")
    assert (labels(from_lines), from_lines.rejected.counts) == (["good"], {"line is not understood": 1})


def test_rows_of_a_label_file_that_point_outside_its_folder_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded())
    folder = tmp_path / "crops"
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded())
    names = ["a.png", "../secret.png", str(tmp_path / "secret.png"), "x/../../secret.png", str(folder / "a.png")]
    (folder / "labels.tsv").write_text("".join(f"{name}\tword{n}\n" for n, name in enumerate(names)))
    images = open_images(folder)
    assert labels(images) == ["word0", "word4"]
    assert images.rejected.counts == {"image lies outside the folder of the label file": 3}
    assert "../secret.png" in images.rejected.examples["image lies outside the folder of the label file"][0]
    (folder / "labels.tsv").write_text("../secret.png\tword\n")
    with pytest.raises(UserError, match="names no existing image"):
        open_images(folder)


def test_a_name_too_long_for_the_file_system_is_one_unreadable_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "labels.tsv").write_text(f"{'n' * 5000}.png\tlong\na.png\tgood\n")
    images = open_images(tmp_path)
    assert images.image(1).size == (40, 16)
    with pytest.raises(UnreadableImage, match="too long"):
        images.image(0)
    (tmp_path / "labels.tsv").write_text(f"{'n' * 5000}.png\tlong\n")
    with pytest.raises(UserError, match="names no existing image"):
        open_images(tmp_path)


def test_a_pipe_in_place_of_data_is_rejected_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels.tsv")
    with pytest.raises(UserError, match="not a regular file"):
        open_images(tmp_path / "labels.tsv")


def lmdb_of(path: Path, count: bytes) -> Path:
    with lmdb.open(str(path), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"num-samples", count)
        for number in range(1, 4):
            transaction.put(b"label-%09d" % number, b"word")
            transaction.put(b"image-%09d" % number, bytes(200_000))
    return path


@pytest.mark.parametrize("count", [b"5000000000", b"9" * 5000])
def test_an_lmdb_that_promises_billions_is_rejected_and_does_not_count_up_to_them(count: bytes, tmp_path: Path) -> None:
    path = lmdb_of(tmp_path / "a.lmdb", count)
    with pytest.raises(UserError, match="num-samples promises"):
        open_images(path)
    rejected: list[str] = []
    assert list(read_rows(str(path), "word", "text", lambda line, item, reason: rejected.append(reason))) == []
    assert len(rejected) == 1
    assert "num-samples promises" in rejected[0]


READ_HALF = """
import sys
from pathlib import Path
from dptr.pipeline.photos.photo_files import find_photos
from dptr.pipeline.text.corpus_files import read_rows
for found in find_photos([Path(sys.argv[1])]):
    print(getattr(found, "reason", None) or len(found.read()))
list(read_rows(sys.argv[1], "word", "text", lambda line, item, reason: print(reason)))
"""


def test_half_an_lmdb_is_rejected_as_photos_and_as_corpus_and_does_not_kill_the_process(tmp_path: Path) -> None:
    path = lmdb_of(tmp_path / "a.lmdb", b"3")
    data = (path / "data.mdb").read_bytes()
    (path / "data.mdb").write_bytes(data[: len(data) // 2])
    done = subprocess.run([sys.executable, "-c", READ_HALF, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.count("bytes of") for line in done.stdout.splitlines()] == [1, 1]


def dictionary_parquet(path: Path) -> Path:
    rows = pa.table({"image": [encoded()] * 64, "label": [f"word{n % 3}" for n in range(64)]})
    pq.write_table(rows, path, compression="none", use_dictionary=["label"])
    return path


def test_a_parquet_dictionary_out_of_bounds_ends_in_one_line(tmp_path: Path) -> None:
    path = dictionary_parquet(tmp_path / "a.parquet")
    assert len(open_images(path)) == 64
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    data = bytearray(path.read_bytes())
    end = column.dictionary_page_offset + column.total_compressed_size
    data[end - 12 : end] = b"\xff" * 12  # the indices of the last rows
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as Parquet"):
        open_images(path)


def test_a_column_of_a_parquet_whose_name_is_no_text_ends_in_one_line(tmp_path: Path) -> None:
    """Of crops, of words and of photos: pyarrow raises UnicodeDecodeError when the file is opened."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b""], "text": ["word"], "unlikely": [1]}), path)
    path.write_bytes(path.read_bytes().replace(b"unlikely", b"unl\x94kely"))
    with pytest.raises(UnicodeDecodeError):
        pq.ParquetFile(path)
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as Parquet"):
        open_images(path)
    rejected: list[str] = []
    assert not list(read_rows(str(path), "line", "text", lambda _line, _item, reason: rejected.append(reason)))
    assert len(rejected) == 1
    assert [type(photo) for photo in find_photos([path])] == [Rejection]


def test_a_parquet_that_promises_more_rows_than_it_has_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "crops.parquet"
    pq.write_table(pa.table({"image": [encoded()] * 2, "label": ["a", "b"]}), path)
    images = open_images(path)
    group = parquet_form._images(state_of(path), 0)
    monkeypatch.setattr(parquet_form, "_images", lambda *_: group[:1])
    with pytest.raises(UnreadableImage):
        images.image(1)
