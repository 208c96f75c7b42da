"""Readers of what people bring along (text, pictures, crops, fonts), with valid files for each: for ``fuzz.py``."""

from __future__ import annotations

import contextlib
import gzip
import json
import lzma
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from PIL import Image

from dptr.cache import pictures
from dptr.cache.charset import Charset
from dptr.cache.errors import DptrError
from dptr.cache.normalization import Normalization
from dptr.cache.stores.quarantine import Quarantine
from dptr.cache.word_images.dataset import WordImages
from dptr.cache.word_images.writer import pack_crops


def made_up_words(count: int) -> list[str]:
    """Return distinct words, the same ones every time."""
    generator = np.random.default_rng(0)
    letters = [list(row) for row in generator.choice(list("aeiouknrst"), (4 * count, 7))]
    return list(dict.fromkeys("".join(row[: 3 + number % 5]) for number, row in enumerate(letters)))[:count]


@dataclass(frozen=True)
class Fuzzed:
    """Valid files of one kind, and how they are read: a file in, nothing out."""

    seeds: list[Path]
    read: Callable[[Path], object]


def _corpus(place: Path) -> Fuzzed:
    from dptr.pipeline.text.corpus import CorpusSettings, read_corpus

    words = made_up_words(300)
    text = "\n".join([*words, "straße", "東京", "e\u0301"]).encode()
    lines = "\n".join(json.dumps({"text": word, "n": 1}) for word in words).encode()
    seeds = {"w.txt": text, "w.txt.gz": gzip.compress(text), "w.txt.xz": lzma.compress(text), "w.jsonl": lines}
    seeds |= {"w.txt.zst": zstandard.compress(text), "w.jsonl.gz": gzip.compress(lines)}
    pq.write_table(pa.table({"text": words}), place / "w.parquet")
    files = [place / "w.parquet", *(written(place / name, data) for name, data in seeds.items())]

    def read(path: Path) -> None:
        with (
            Quarantine(path.parent / "refused.parquet") as refused,
            read_corpus([str(path)], CorpusSettings(charset="auto"), refused) as corpus,
        ):
            list(corpus.batches(1000))

    return Fuzzed(files, read)


def _picture_seeds(place: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (24, 40, 3), np.uint8)
    files = []
    for name, mode in (("a.png", "RGB"), ("p.png", "P"), ("i.png", "I;16"), ("g.gif", "P"), ("j.jpg", "RGB")):
        image = (
            Image.fromarray(pixels[:, :, 0].astype(np.uint16))
            if mode == "I;16"
            else Image.fromarray(pixels).convert(mode)
        )
        image.save(place / name)
        files.append(place / name)
    for name in ("w.webp", "b.bmp", "t.tif", "c.jpg"):
        Image.fromarray(pixels).convert("CMYK" if name == "c.jpg" else "RGB").save(place / name)
        files.append(place / name)
    return files


def _images(place: Path) -> Fuzzed:
    return Fuzzed(_picture_seeds(place), lambda path: pictures.decode(path.read_bytes()))


def _crops(place: Path) -> Path:
    folder = place / "crops"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 96, 3), np.uint8)
    words = made_up_words(6)
    for number in range(len(words)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "labels.tsv").write_text("".join(f"{number}.png\t{word}\n" for number, word in enumerate(words)))
    return folder


def _read_crops(path: Path) -> None:
    images = WordImages.open([path], Charset.named("94"), Normalization())
    for index in range(min(len(images), 20)):
        with contextlib.suppress(DptrError):
            images.image(index)


def _labels(place: Path) -> Fuzzed:
    folder = _crops(place)
    words = made_up_words(6)
    listed = "\n".join(json.dumps({"file_name": f"{n}.png", "text": word}) for n, word in enumerate(words))
    files = [folder / "labels.tsv", written(place / "labels.jsonl", listed.encode())]
    for name, line in (("gt.txt", '{}.png, "{}"\n'), ("rec_gt_train.txt", "{}.png\t{}\n")):
        files.append(written(place / name, "".join(line.format(n, word) for n, word in enumerate(words)).encode()))

    def read(path: Path) -> None:
        for picture in folder.glob("*.png"):
            shutil.copy(picture, path.parent)
        _read_crops(path.parent)

    return Fuzzed(files, read)


def _lmdb(place: Path) -> Fuzzed:
    pack_crops(_crops(place), place / "crops.lmdb")
    data = place / "crops.lmdb" / "data.mdb" if (place / "crops.lmdb").is_dir() else place / "crops.lmdb"
    return Fuzzed([data], lambda path: _read_crops(path.parent if path.name == "data.mdb" else path))


def _parquet(place: Path) -> Fuzzed:
    pack_crops(_crops(place), place / "crops.parquet")
    return Fuzzed([place / "crops.parquet"], _read_crops)


def _tar(place: Path) -> Fuzzed:
    folder = _crops(place)
    with tarfile.open(place / "shard.tar", "w") as archive:
        for number, word in enumerate(made_up_words(6)):
            archive.add(folder / f"{number}.png", f"{number}.png")
            archive.add(written(place / f"{number}.txt", word.encode()), f"{number}.txt")
    return Fuzzed([place / "shard.tar"], _read_crops)


def _photo_archives(place: Path) -> Fuzzed:
    from dptr.pipeline.photos.photo import Refusal
    from dptr.pipeline.photos.photo_files import find_photos

    photos = _picture_seeds(place)
    with tarfile.open(place / "photos.tar", "w") as archive, zipfile.ZipFile(place / "photos.zip", "w") as zipped:
        for photo in photos:
            archive.add(photo, f"in/{photo.name}")
            zipped.write(photo, f"in/{photo.name}")
    pq.write_table(pa.table({"image": [photo.read_bytes() for photo in photos]}), place / "photos.parquet")

    def read(path: Path) -> None:
        for photo in find_photos([path]):
            if not isinstance(photo, Refusal):
                # The bank's reader quarantines a photo, whatever its library raises.
                with contextlib.suppress(Exception):
                    pictures.decode(photo.read())

    return Fuzzed([place / name for name in ("photos.tar", "photos.zip", "photos.parquet")], read)


def _fonts(place: Path) -> Fuzzed:
    from importlib.metadata import entry_points

    from dptr.pipeline.rendering.crop import render_one
    from dptr.pipeline.rendering.fonts import find_fonts

    packaged = (Path(path) for entry in entry_points(group="fonts_ttf") for path in entry.load().values())
    smallest = sorted(packaged, key=lambda path: path.stat().st_size)[:2]
    files = [written(place / f"{number}.ttf", path.read_bytes()) for number, path in enumerate(smallest)]

    def read(path: Path) -> None:
        fonts, generator = find_fonts(path.parent), np.random.default_rng(0)
        for word in ("Wort", "fi\u0301x", "\u0928\u092e\u0938\u094d\u0924\u0947"):
            if fonts.covers(word):
                render_one(word, fonts.choose(word, generator), generator)

    return Fuzzed(files, read)


def _charset(place: Path) -> Fuzzed:
    texts = {
        "plain.txt": "".join(map(chr, range(33, 127))) + "\u00e4\u00f6\n\u6771\u4eac",
        "clusters.txt": "# units: grapheme, order: logical\nk\n\u0915\u093f\n\u0928\u093f\n\u0e01\u0e34\n",
        "seen.txt": "# units: codepoint, order: visual\n\u05d0\n\u05d1\na\n1\n",
    }
    files = [written(place / name, text.encode()) for name, text in texts.items()]

    def read(path: Path) -> None:
        charset = Charset.named(str(path))
        again = Charset.from_text(charset.text)
        label = "".join(charset.characters[:9])
        assert again == charset
        charset.decode(charset.encode(label)) if not charset.missing(label) else charset.project(label)

    return Fuzzed(files, read)


def _boxes(place: Path) -> Fuzzed:
    from dptr.trainer.page_boxes import read_boxes

    corners = [10, 10, 90, 12, 88, 40, 9, 38]
    points = [corners[:2], corners[2:4], corners[4:6], corners[6:]]
    found: list[dict[str, Any]] = [{"points": points}, {"left": 1, "top": 2, "right": 30, "bottom": 20}]
    lines = {
        "a.json": json.dumps({"boxes": found}),
        "b.json": json.dumps([corners, [1, 2, 40, 30]]),
        "gt.txt": "10,10,90,12,88,40,9,38,word\n1,2,40,30,other\n",
        "c.csv": 'x,y,width,height,text\n1,2,30,20,"a, b"\n5,5,40,10,c\n',
    }
    page = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8))

    def read(path: Path) -> None:
        for box in read_boxes(path):
            with contextlib.suppress(DptrError):
                box.cut_from(page)

    return Fuzzed([written(place / name, text.encode()) for name, text in lines.items()], read)


def written(path: Path, data: bytes) -> Path:
    """Write a file; return its path."""
    path.write_bytes(data)
    return path


READERS: dict[str, Callable[[Path], Fuzzed]] = {
    "corpus": _corpus,
    "images": _images,
    "labels": _labels,
    "lmdb": _lmdb,
    "tar": _tar,
    "parquet": _parquet,
    "photo-archives": _photo_archives,
    "fonts": _fonts,
    "charset": _charset,
    "boxes": _boxes,
}
