"""Lists of many labelled crops: kept beside the data, mapped, and what would be listed anew to the last bit."""

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

from dptr.cache.charset import Charset
from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.normalization import Normalization
from dptr.cache.stores import checks
from dptr.cache.word_images import crop_columns, kept_file, lmdb_form, parquet_form, samples
from dptr.cache.word_images.dataset import WordImages
from dptr.cache.word_images.label_files import LabelFile
from dptr.cache.word_images.samples import Samples
from dptr.cache.word_images.split import split
from dptr.cache.word_images.writer import write_word_images

BLOCK_BITS = 3
LABELS = [
    f"word{number}" if number % 7 else ("two words", "ＷＩＤＥ", "not ünüsed")[number % 3] for number in range(40)
]
FORMS = ["folder", "lmdb", "parquet", "tar"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for module in (kept_file, crop_columns, samples):
        monkeypatch.setattr(module, "BLOCK_BITS", BLOCK_BITS)
    monkeypatch.setattr(crop_columns, "_WITHIN", (1 << BLOCK_BITS) - 1)
    monkeypatch.setattr(samples, "_AT_ONCE", 11)
    monkeypatch.setenv("DPTR_CACHE", str(tmp_path / "cache"))
    yield
    checks._background.damage.clear()


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
    return sorted(folder.rglob("*.listing"))


def everything(images: WordImages) -> list[object]:
    counted = [images.refused, images.changed, images.examples, images.refusals]
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
    with monkeypatch.context() as in_memory:
        for module in (kept_file, crop_columns, samples):
            in_memory.setattr(module, "BLOCK_BITS", 16)
        in_memory.setattr(crop_columns, "_WITHIN", (1 << 16) - 1)
        expected = everything(opened(path))
        assert kept_in(tmp_path) == []
    first = everything(opened(path))
    assert len(kept_in(tmp_path / "data")) == 2, "the list, and which of it is for validation"
    again = opened(path)
    for name in ("labels", "placed_labels"):
        monkeypatch.setattr(type(next(iter(again.sources.values()))), name, listed_again, raising=False)
    assert expected == first == everything(opened(path))
    assert expected == everything(pickle.loads(pickle.dumps(again)))
    checks.finish()


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
    # A process keeps these files open.
    lmdb_form._close_inherited()
    parquet_form._open.cache_clear()
    make(form, tmp_path / "data", [label.replace("w", "v") for label in LABELS])
    assert opened(path).samples[1].label == "vord1"


def test_the_same_size_at_another_time_is_listed_again(tmp_path: Path) -> None:
    path = make("folder", tmp_path / "data")
    opened(path)
    labels = path / "labels.tsv"
    changed, before = labels.read_text().replace("word", "wird"), labels.stat()
    labels.write_text(changed)
    os.utime(labels, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert opened(path).samples[1].label == "wird1"


def test_changed_code_lists_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("folder", tmp_path / "data")
    opened(path)
    monkeypatch.setattr("dptr.cache.word_images.listing._code_of", lambda sources: ["changed"])
    monkeypatch.setattr(Normalization, "apply", lambda self, raw: raw.upper().replace(" ", ""))
    assert opened(path).samples[1].label == "WORD1"


def test_a_torn_list_is_made_again_and_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = make("folder", tmp_path / "data")
    expected = list(opened(path).samples)
    (kept,) = kept_in(tmp_path)
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    assert list(opened(path).samples) == expected
    assert kept.read_bytes() == whole
    place = whole.index(b"word1")
    kept.write_bytes(whole[:place] + b"w" + bytes([whole[place + 1] ^ 1]) + whole[place + 2 :])
    opened(path)
    with pytest.raises(DamagedStore, match="remove it, and it is made again"):
        checks.finish()


def test_beside_data_that_cannot_be_written_the_list_is_in_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make("lmdb", tmp_path / "data")
    real = kept_file.locked_file

    def refused(target: Path) -> object:
        if target.is_relative_to(tmp_path / "data"):
            raise UserError("cannot write", "")
        return real(target)

    monkeypatch.setattr(kept_file, "locked_file", refused)
    expected = everything(opened(path))
    assert kept_in(tmp_path / "data") == []
    assert len(kept_in(tmp_path / "cache")) == 2
    monkeypatch.setattr("dptr.cache.word_images.lmdb_form.LmdbSource.labels", listed_again)
    assert everything(opened(path)) == expected


def test_where_nothing_can_be_written_the_list_serves_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make("tar", tmp_path / "data")

    def refused(target: Path) -> object:
        raise UserError("cannot write", "")

    monkeypatch.setattr(kept_file, "locked_file", refused)
    images = opened(path)
    assert images.image(1).getpixel((0, 0)) == (1, 128, 128)
    assert pickle.loads(pickle.dumps(images)).samples == images.samples
    assert kept_in(tmp_path) == []


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


@pytest.mark.parametrize("name", ["key", "label"])
def test_offsets_that_lead_out_of_a_kept_list_are_damage_and_end_no_process(name: str, tmp_path: Path) -> None:
    path = make("lmdb", tmp_path / "data")
    opened(path)
    (kept,) = kept_in(tmp_path)
    with pa.memory_map(str(kept)) as file:
        column = pa.ipc.open_file(file.read_buffer()).get_batch(0).column(name)
    offsets = column.buffers()[1].to_pybytes()[: 4 * (len(column) + 1)]
    data = kept.read_bytes()
    at = data.index(offsets) + 4
    kept.write_bytes(data[:at] + (1 << 30).to_bytes(4, "little") + data[at + 4 :])
    samples = opened(path).samples
    with pytest.raises(DamagedStore, match="Remove it"):
        _ = samples[0]
    with pytest.raises(DamagedStore, match="Remove it"):
        list(samples.pieces())
    with pytest.raises(DamagedStore, match="is damaged"):
        checks.finish()
