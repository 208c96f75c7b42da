"""Lists of many labelled crops: kept in the cache folder, mapped, and what would be listed anew to the last bit."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from dptr.cache.crops import samples
from dptr.cache.crops.dataset import WordImages, split, write_word_images
from dptr.cache.crops.label_files import LabelFile
from dptr.cache.crops.samples import Samples
from dptr.cache.errors import UserError
from dptr.cache.progress import set_quiet
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization

BLOCK_BITS = 3
LABELS = [
    f"word{number}" if number % 7 else ("two words", "ＷＩＤＥ", "not ünüsed")[number % 3] for number in range(40)
]
FORMS = ["folder", "lmdb", "parquet", "tar"]


@pytest.fixture(autouse=True)
def small_lists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(samples, "_FEWEST_KEPT", 8)
    monkeypatch.setattr(samples, "_BATCH", 8)
    monkeypatch.setenv("DPTR_CACHE", str(tmp_path / "cache"))


def picture(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (24, 8), (number, 128, 128)).save(stream, "PNG")
    return stream.getvalue()


def make(form: str, folder: Path, labels: list[str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    if form != "tar":
        out = folder / ("crops" if form == "folder" else f"crops.{form}")
        with write_word_images(out) as writer:
            for number, label in enumerate(labels or LABELS):
                writer.write(picture(number), label)
        return out
    with tarfile.open(folder / "crops.tar", "w") as archive:
        for number, label in enumerate(labels or LABELS):
            for suffix, content in (("png", picture(number)), ("txt", label.encode())):
                member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder / "crops.tar"


def opened(path: Path, charset: str = "62") -> WordImages:
    return WordImages.open([path], Charset.named(charset), Normalization())


def kept_in(folder: Path) -> list[Path]:
    return sorted((folder / "cache").rglob("*.arrow"))


def everything(images: WordImages) -> list[object]:
    counted = [images.rejected, images.changed]
    pictures = [images.image(index).getpixel((0, 0)) for index in range(len(images))]
    sides = [list(side.samples) for side in split(images, 0.2, seed=5)]
    return [list(images.samples), images.identity(), *counted, pictures, sides]


def listed_again(source: object) -> object:
    raise AssertionError("it was to be listed once")


@pytest.mark.parametrize("form", FORMS)
def test_a_kept_list_gives_what_listing_in_memory_gave(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(form, tmp_path / "data")
    files = sorted(path.parent.rglob("*"))
    with monkeypatch.context() as in_memory:
        in_memory.setattr(samples, "_FEWEST_KEPT", 1000)
        in_memory.setattr(samples, "_BATCH", 1000)
        expected = everything(opened(path))
        assert kept_in(tmp_path) == []
    first = everything(opened(path))
    assert len(kept_in(tmp_path)) == 1
    again = opened(path)
    monkeypatch.setattr(type(next(iter(again.sources.values()))), "labels", listed_again)
    assert expected == first == everything(opened(path))
    assert expected == everything(pickle.loads(pickle.dumps(again)))
    assert sorted(path.parent.rglob("*")) == files, "nothing is written beside the data"


def test_what_goes_to_a_worker_is_as_small_whatever_the_number_of_crops(tmp_path: Path) -> None:
    sizes = [len(pickle.dumps(opened(make("lmdb", tmp_path / f"{n}", ["ab"] * n)))) for n in (100, 2000)]
    assert sizes[1] < sizes[0] + 20
    training = split(opened(tmp_path / "2000" / "crops.lmdb"), 0.1, seed=0)[0]
    assert len(pickle.dumps(training)) < sizes[0] + 2000, "a bit for each crop that was chosen among"


def test_another_charset_has_a_list_of_its_own_and_labels_as_written_have_one(tmp_path: Path) -> None:
    path = make("lmdb", tmp_path / "data")
    assert len(opened(path, "62")) < len(WordImages.open_as_written([path]))
    assert opened(path, "36").samples[1].label == "word1"
    assert len(kept_in(tmp_path)) == 3


def test_the_same_characters_emitted_in_another_order_have_a_list_of_their_own(tmp_path: Path) -> None:
    path = make("lmdb", tmp_path / "data")
    characters = Charset.named("62").characters
    for charset in (Charset(characters, order="logical"), Charset(characters, order="visual")):
        WordImages.open([path], charset, Normalization())
    assert len(kept_in(tmp_path)) == 2


@pytest.mark.parametrize("form", FORMS)
def test_data_that_changed_is_listed_again(form: str, tmp_path: Path) -> None:
    path = make(form, tmp_path / "data")
    opened(path)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    make(form, tmp_path / "data", [label.replace("w", "v") for label in LABELS])
    changed = opened(path)
    assert changed.samples[1].label == "vord1"
    assert changed.image(1).getpixel((0, 0)) == (1, 128, 128)


def test_the_same_size_at_another_time_is_listed_again(tmp_path: Path) -> None:
    path = make("folder", tmp_path / "data")
    opened(path)
    labels = path / "labels.tsv"
    changed, before = labels.read_text().replace("word", "wird"), labels.stat()
    labels.write_text(changed)
    os.utime(labels, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert opened(path).samples[1].label == "wird1"


def test_an_edit_of_the_code_lists_nothing_again_and_another_format_version_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make("folder", tmp_path / "data")
    opened(path)
    monkeypatch.setattr(Normalization, "apply", lambda self, raw: raw.upper().replace(" ", ""))
    assert opened(path).samples[1].label == "word1"
    monkeypatch.setattr(samples, "FORMAT_VERSION", 2)
    assert opened(path).samples[1].label == "WORD1"


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "offset"])
def test_a_damaged_list_is_made_again(damage: str, tmp_path: Path) -> None:
    path = make("folder", tmp_path / "data")
    expected = list(opened(path).samples)
    (kept,) = kept_in(tmp_path)
    whole = kept.read_bytes()
    with pa.memory_map(str(kept)) as file:
        column = pa.ipc.open_file(file.read_buffer()[:-16]).get_batch(0).column("label")
    offsets = whole.index(column.buffers()[1].to_pybytes()[: 4 * (len(column) + 1)]) + 4
    changed = {
        "cut": whole[: len(whole) // 2],
        "flipped": whole.replace(b"word1", b"wore1", 1),
        "empty": b"",
        "offset": whole[:offsets] + (1 << 30).to_bytes(4, "little") + whole[offsets + 4 :],
    }
    kept.write_bytes(changed[damage])
    assert list(opened(path).samples) == expected
    assert kept.read_bytes() == whole


def test_where_the_cache_folder_cannot_be_written_the_list_serves_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make("tar", tmp_path / "data")
    (tmp_path / "cache").write_text("no folder")
    set_quiet(False)
    images = opened(path)
    assert "is not saved in" in capsys.readouterr().err
    assert images.image(1).getpixel((0, 0)) == (1, 128, 128)
    assert pickle.loads(pickle.dumps(images)).samples == images.samples


def test_a_failed_listing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("folder", tmp_path / "data")
    labels = LabelFile.labels

    def fails(self: LabelFile) -> Iterator[object]:
        yield from list(labels(self))[:30]
        raise UserError("damaged", "copy it again")

    monkeypatch.setattr(LabelFile, "labels", fails)
    with pytest.raises(UserError, match="damaged"):
        opened(path)
    assert sorted(file.name for file in path.iterdir()) == ["images", "labels.tsv"]


def test_names_and_labels_that_are_no_utf8_stay_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(1))
    lines = ['{"image": "a.png", "label": "lone \\ud800"}', '{"image": "gone\\udcff.png", "label": "ok"}']
    (folder / "labels.jsonl").write_text("\n".join(lines * 10))
    images = WordImages.open_as_written([folder])
    assert [(sample.key, sample.label) for sample in images.samples][:2] == [
        ("a.png", "lone \ud800"),
        ("gone\udcff.png", "ok"),
    ]
    assert WordImages.open_as_written([folder]).identity() == images.identity()


def test_samples_read_as_a_list_does(tmp_path: Path) -> None:
    images = WordImages.open(
        [make("tar", tmp_path / "a"), make("lmdb", tmp_path / "b")], Charset.named("94"), Normalization()
    )
    listed = list(images.samples)
    assert [images.samples[index] for index in range(len(listed))] == listed == images.samples
    assert images.samples[-1] == listed[-1]
    assert {sample.data_set for sample in listed} == {0, 1}
    with pytest.raises(IndexError):
        images.samples[len(listed)]
    chosen = images.only([5, 3, 60, 4]).only([3, 0])
    assert chosen.samples == [listed[4], listed[5]]
    assert chosen.samples != listed
    assert list(chosen.samples.every_data_set()) == [0, 0]
    assert (len(Samples()), list(Samples())) == (0, [])
