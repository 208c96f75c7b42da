from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import lmdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dptr.cache.errors import UserError
from dptr.cache.pictures import decode
from dptr.cache.rejections import Rejection
from dptr.pipeline.photos.photo_files import Photo, count_photos, find_photos


def found_in(*paths: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return contents by place, and reasons by file."""
    found = list(find_photos(paths))
    photos = {photo.place: photo.read() for photo in found if isinstance(photo, Photo)}
    return photos, {one.source: one.reason for one in found if isinstance(one, Rejection)}


def test_folders_are_searched_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "a/notes.txt", "c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    photos, rejected = found_in(tmp_path)
    assert list(photos) == [str(tmp_path / name) for name in ("a/z.png", "b.JPG", "c.webp")]
    assert photos[str(tmp_path / "b.JPG")] == b"b.JPG"
    assert not rejected


def test_a_bank_that_lies_among_the_photos_is_no_source_of_photos(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    store = tmp_path / "dptr_data" / "orp"
    store.mkdir(parents=True)
    pq.write_table(pa.table({"image": ["a.png"], "thumbnail": [b"tiny"]}), store / "part-00000.parquet")
    assert len(found_in(tmp_path)[0]) == 2
    for name in ("manifest.json", "part-00000.arrow"):
        (store / name).write_bytes(b"{}")
    assert list(found_in(tmp_path)[0]) == [str(tmp_path / "a.png")]


def test_a_file_that_is_named_is_taken_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"x")
    assert list(found_in(tmp_path / "photo")[0]) == [str(tmp_path / "photo")]


def test_links_are_followed_and_those_that_lead_nowhere_rejected(tmp_path: Path) -> None:
    pile, elsewhere = tmp_path / "pile", tmp_path / "elsewhere"
    (pile / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes(b"a")
    (pile / "deep" / "up").symlink_to(pile)
    (pile / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (pile / "self.png").symlink_to(pile / "self.png")
    (pile / "there").symlink_to(elsewhere)
    photos, rejected = found_in(pile)
    assert list(photos) == [str(pile / "there" / "a.png")]
    assert rejected == {
        str(pile / "self.png"): "cannot be read: Too many levels of symbolic links",
        str(pile / "gone.png"): "cannot be read: No such file or directory",
    }


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert found_in(tmp_path)[1] == {str(tmp_path / "pipe.png"): "not a regular file"}


def test_names_that_are_not_unicode_become_printable(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"\xff.png")
    Path(os.fsdecode(path)).write_bytes(b"x")
    (place,) = found_in(tmp_path)[0]
    assert place.encode("utf-8").endswith(b"\\xff.png")


def test_archives(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("0.jpg", "0.txt", "1.jpg"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/2.png", b"two")
        archive.writestr("in/readme", b"no")
    images = [{"bytes": b"three", "path": "3.png"}, {"bytes": b"four", "path": None}, {"bytes": b"five", "path": None}]
    pq.write_table(pa.table({"image": images, "label": [1, 2, 3]}), tmp_path / "c.parquet", row_group_size=2)
    with lmdb.open(str(tmp_path / "d"), map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"num-samples", b"1")
        transaction.put(b"label-000000001", b"word")
        transaction.put(b"image-000000001", b"six")
    photos, rejected = found_in(tmp_path)
    assert {place.removeprefix(str(tmp_path) + "/"): data for place, data in photos.items()} == {
        "a.tar::0.jpg": b"0.jpg",
        "a.tar::1.jpg": b"1.jpg",
        "b.zip::in/2.png": b"two",
        "c.parquet::row 1": b"three",
        "c.parquet::row 2": b"four",
        "c.parquet::row 3": b"five",
        "d::image-000000001": b"six",
    }
    assert not rejected


def test_broken_archives_are_rejected_and_what_is_before_the_tear_is_kept(tmp_path: Path) -> None:
    for name in ("a.zip", "b.parquet", "c.tar", "d.lmdb"):
        (tmp_path / name).write_bytes(b"no archive, though it is long enough to be one" * 30)
    with tarfile.open(tmp_path / "e.tar", "w") as archive:
        for name in ("0.jpg", "1.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 5
            archive.addfile(info, io.BytesIO(name.encode()))
    whole = (tmp_path / "e.tar").read_bytes()
    (tmp_path / "e.tar").write_bytes(whole[:1024] + b"x" * 100)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "f.parquet")
    photos, rejected = found_in(tmp_path)
    assert list(photos) == [str(tmp_path / "e.tar") + "::0.jpg"]
    assert len(rejected) == 6
    assert all(reason.startswith("broken archive") for reason in rejected.values())


def test_no_photo_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="no photo in"):
        count_photos([tmp_path])
    with pytest.raises(UserError, match="does not exist"):
        count_photos([tmp_path / "nowhere"])


def test_pictures_that_cannot_be_read_here_are_rejected_by_name_and_others_are_read(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), "red")
    formats = {"a.jp2": "JPEG2000", "b.ppm": "PPM", "c.mpo": "MPO", "d.avif": "AVIF"}
    for name, kind in formats.items():
        picture.save(tmp_path / name, kind)
    (tmp_path / "e.heic").write_bytes(b"heic")
    (tmp_path / "f.txt").write_text("no picture")
    with tarfile.open(tmp_path / "g.tar", "w") as archive:
        archive.add(tmp_path / "a.jp2", "a.jp2")
        archive.add(tmp_path / "e.heic", "e.HEIC")
    with zipfile.ZipFile(tmp_path / "h.zip", "w") as zipped:
        zipped.write(tmp_path / "e.heic", "e.heic")
    found = list(find_photos([tmp_path]))
    read = [one for one in found if isinstance(one, Photo)]
    assert [Path(one.source).name for one in read] == [*formats, "g.tar"]
    assert {decode(one.read()).size for one in read} == {(8, 8)}
    rejected = [one for one in found if isinstance(one, Rejection)]
    assert [Path(one.source).name for one in rejected] == ["e.heic", "g.tar", "h.zip"]
    assert {one.reason for one in rejected} == {"picture format cannot be read: .heic"}


def test_importing_the_reader_of_pictures_silences_no_warning() -> None:
    code = "import warnings; before = list(warnings.filters); import dptr.cache.pictures; "
    code += "print([one for one in warnings.filters if one not in before])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "PIL" not in done.stdout
