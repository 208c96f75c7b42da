"""Readers of what people bring along, of stores, runs and models, with valid files for each: for ``fuzz.py``."""

from __future__ import annotations

import contextlib
import gzip
import json
import lzma
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from PIL import Image

from dptr.cache import pictures
from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import DptrError
from dptr.cache.rejections import Quarantine
from dptr.cache.stores import checks
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.manifest import FileRecord
from dptr.cache.stores.verify import verify
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.cli import run_command

_WORDS = [a + b + c for a in "bdfgk" for b in "aeiou" for c in "ln"]


@dataclass(frozen=True)
class Fuzzed:
    """Valid files of one kind, and how they are read: a file in, nothing out."""

    seeds: list[Path]
    read: Callable[[Path], object]


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _corpus(place: Path) -> Fuzzed:
    from dptr.pipeline.text.corpus import CorpusSettings, read_corpus

    text = "\n".join([*_WORDS, "straße", "東京", "e\u0301"]).encode()
    lines = "\n".join(json.dumps({"text": word, "n": 1}) for word in _WORDS).encode()
    seeds = {"w.txt": text, "w.txt.gz": gzip.compress(text), "w.txt.xz": lzma.compress(text), "w.jsonl": lines}
    seeds |= {"w.txt.zst": zstandard.compress(text), "w.jsonl.gz": gzip.compress(lines)}
    pq.write_table(pa.table({"text": _WORDS}), place / "w.parquet")
    files = [place / "w.parquet", *(_written(place / name, data) for name, data in seeds.items())]

    def read(path: Path) -> None:
        with (
            Quarantine(path.parent / "rejected.parquet") as rejected,
            read_corpus([str(path)], CorpusSettings(charset="auto"), rejected) as corpus,
        ):
            list(corpus.batches(1000))

    return Fuzzed(files, read)


def _images(place: Path) -> Fuzzed:
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8))
    modes = {"a.png": "RGB", "p.png": "P", "g.gif": "P", "j.jpg": "RGB", "c.jpg": "CMYK", "w.webp": "RGB"}
    for name, mode in {**modes, "b.bmp": "RGB", "t.tif": "RGB", "i.png": "I;16"}.items():
        image = pixels.convert(mode) if mode != "I;16" else Image.fromarray(np.full((9, 9), 700, np.uint16))
        image.save(place / name)
    return Fuzzed(sorted(place.glob("*.*")), lambda path: pictures.decode(path.read_bytes()))


def _crops(place: Path) -> Path:
    folder = place / "crops"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 96, 3), np.uint8)
    for number in range(6):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "labels.tsv").write_text("".join(f"{n}.png\t{word}\n" for n, word in enumerate(_WORDS[:6])))
    return folder


def _read_crops(path: Path) -> None:
    images = WordImages.open([path], Charset.named("94"), Normalization())
    for index in range(min(len(images), 20)):
        with contextlib.suppress(DptrError):
            images.image(index)


def _labels(place: Path) -> Fuzzed:
    folder = _crops(place)
    listed = "\n".join(json.dumps({"file_name": f"{n}.png", "text": word}) for n, word in enumerate(_WORDS[:6]))
    files = [folder / "labels.tsv", _written(place / "labels.jsonl", listed.encode())]
    for name, line in (("gt.txt", '{}.png, "{}"\n'), ("rec_gt_train.txt", "{}.png\t{}\n")):
        files.append(_written(place / name, "".join(line.format(n, w) for n, w in enumerate(_WORDS[:6])).encode()))

    def read(path: Path) -> None:
        for picture in folder.glob("*.png"):
            shutil.copy(picture, path.parent)
        _read_crops(path.parent)

    return Fuzzed(files, read)


def _packed(name: str) -> Callable[[Path], Fuzzed]:
    def make(place: Path) -> Fuzzed:
        run_command(["pack-crops", str(_crops(place)), "-o", str(place / name), "--quiet"])
        data = place / name / "data.mdb" if (place / name).is_dir() else place / name
        return Fuzzed([data], lambda path: _read_crops(path.parent if path.name == "data.mdb" else path))

    return make


def _tar(place: Path) -> Fuzzed:
    folder = _crops(place)
    with tarfile.open(place / "shard.tar", "w") as archive:
        for number, word in enumerate(_WORDS[:6]):
            archive.add(folder / f"{number}.png", f"{number}.png")
            archive.add(_written(place / f"{number}.txt", word.encode()), f"{number}.txt")
    return Fuzzed([place / "shard.tar"], _read_crops)


def _photo_archives(place: Path) -> Fuzzed:
    from dptr.cache.rejections import Rejection
    from dptr.pipeline.photos.photo_files import find_photos

    photos = _images(place).seeds
    with tarfile.open(place / "photos.tar", "w") as archive, zipfile.ZipFile(place / "photos.zip", "w") as zipped:
        for photo in photos:
            archive.add(photo, f"in/{photo.name}")
            zipped.write(photo, f"in/{photo.name}")
    pq.write_table(pa.table({"image": [photo.read_bytes() for photo in photos]}), place / "photos.parquet")

    def read(path: Path) -> None:
        for photo in find_photos([path]):
            if not isinstance(photo, Rejection):
                # The bank's reader quarantines a photo, whatever its library raises.
                with contextlib.suppress(Exception):
                    pictures.decode(photo.read())

    return Fuzzed([place / name for name in ("photos.tar", "photos.zip", "photos.parquet")], read)


def _charset(place: Path) -> Fuzzed:
    texts = ["".join(map(chr, range(33, 127))) + "äö\n東京", "# units: grapheme, order: logical\nk\nकि\nนิ\n"]
    files = [_written(place / f"{number}.txt", text.encode()) for number, text in enumerate(texts)]

    def read(path: Path) -> None:
        charset = Charset.named(str(path))
        assert Charset.from_text(charset.text) == charset

    return Fuzzed(files, read)


def _boxes(place: Path) -> Fuzzed:
    from dptr.trainer.read_files import read_boxes

    boxes = json.dumps([[10, 10, 90, 12, 88, 40, 9, 38], [1, 2, 40, 30]]).encode()
    lines = b"10,10,90,12,88,40,9,38,word\n"
    return Fuzzed([_written(place / "b.json", boxes), _written(place / "gt.txt", lines)], read_boxes)


def _store(place: Path) -> Path:
    words = _written(place / "words.txt", "\n".join(_WORDS).encode())
    run_command(["embed-text", str(words), "-o", str(place / "prompts"), "--shard-rows", "20", "--quiet"])
    return place / "prompts"


def _read_store(folder: Path) -> None:
    """Read all of a store, first as ``verify`` does, then as training does, whatever ``verify`` finds."""
    from dptr.cache.stores.prompts import PromptStore

    verify(folder)
    try:
        store = PromptStore(folder)
        rows = np.arange(len(store))
        _ = store.charset, store.labels[:50], store.prefix, store.embeddings(rows[:50])
    finally:
        checks.finish()


def _beside(path: Path, folder: Path) -> None:
    """Let the other files of a folder lie beside one of them that is broken."""
    for file in folder.iterdir():
        if file.name != path.name and file.is_file():
            os.link(file, path.parent / file.name)


def _checksum_again(path: Path) -> None:
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            value.pop("checksum", None)
            checksummed.write_json(path, {"format_version": 2, **value})


def _manifest(place: Path) -> Fuzzed:
    store = _store(place)

    def read(path: Path) -> None:
        _beside(path, store)
        _checksum_again(path)
        _read_store(path.parent)

    return Fuzzed([store / "manifest.json"], read)


def _shards(place: Path) -> Fuzzed:
    """Files of a store whose manifest has the hashes of what was broken: a store that somebody else made."""
    store = _store(place)
    manifest = (store / "manifest.json").read_text()

    def read(path: Path) -> None:
        _beside(path, store)
        changed = json.loads(manifest)
        lists = [changed["files"], *(shard["files"] for shard in changed["shards"])]
        next(files for files in lists if path.name in files)[path.name] = vars(FileRecord.of(path))
        changed.pop("checksum")
        (path.parent / "manifest.json").unlink()
        checksummed.write_json(path.parent / "manifest.json", changed)
        _read_store(path.parent)

    names = ("part-00000.parquet", "part-00000.arrow", "prefix.arrow", "rows.arrow")
    return Fuzzed([store / name for name in names], read)


def _recipe(place: Path) -> Fuzzed:
    from dptr.trainer.recipe import load_recipe, load_saved_recipe

    def read(path: Path) -> None:
        load_saved_recipe(path.read_bytes().decode("utf-8", "replace"), str(path))
        load_recipe(str(path))

    recipes = Path(__file__).parent.parent / "recipes"
    return Fuzzed([recipes / f"{name}.toml" for name in ("tiny", "small", "reader")], read)


def _checkpoint(place: Path) -> Fuzzed:
    import torch

    from dptr.trainer.training.checkpoint import load_state, load_tensors, save_checkpoint

    save_checkpoint(place / "last", {"model": {"w": torch.ones(4, 5), "b": torch.zeros(7)}}, {"step": 3})

    def read(path: Path) -> None:
        _beside(path, place / "last")
        if path.name == "state.json":
            _checksum_again(path)
            load_state(path.parent)
        load_tensors(path.parent, "model")

    return Fuzzed([place / "last" / "state.json", place / "last" / "model.safetensors"], read)


def _model(place: Path) -> Fuzzed:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    from dptr.trainer.model.model_file import BUNDLED, ModelFile

    with safe_open(BUNDLED, "np") as file:
        save_file({"w": np.ones(4)}, place / "model.safetensors", file.metadata())
    checksummed.checksum(place / "model.safetensors")

    def read(path: Path) -> None:
        if checksummed.has_checksum(path) is False:
            checksummed.checksum(path)
        ModelFile.open(path)

    return Fuzzed([place / "model.safetensors"], read)


def _clip(place: Path) -> Fuzzed:
    """The folder of a CLIP that somebody else trained: its descriptions, its tokenizer and its weights."""
    from dptr.pipeline.clip.clip_files import BUNDLED
    from dptr.pipeline.clip.loading import load_clip

    def read(path: Path) -> None:
        _beside(path, BUNDLED)
        load_clip(str(path.parent))

    return Fuzzed([path for path in BUNDLED.iterdir() if path.suffix in (".json", ".safetensors")], read)


def _workspace(place: Path) -> Fuzzed:
    """What ``dptr sql`` reads of a workspace that somebody else made: descriptions, logs and predictions of runs."""
    from dptr.cache.sql import ask, connect, tables
    from dptr.cache.workspace import Workspace
    from dptr.trainer.evaluate import keep_validation_predictions

    log = b"".join(b'{"step": %d, "loss": 0.5, "rate": 1e-3}\n' % step for step in range(9))
    _written(place / "metrics.jsonl", log)
    checksummed.write_json(
        place / "run.json", {"kind": "finetune", "charset": "abc", "data": {"rows": 3}, "versions": {}}
    )
    keep_validation_predictions(place, ["ab", "c"], ["ab", "b"])
    predictions = next((place / "predictions").glob("*.parquet"))
    whole = [place / "metrics.jsonl", place / "run.json", predictions]

    def read(path: Path) -> None:
        run = path.parent / "ws" / "runs" / "one"
        (run / "predictions").mkdir(parents=True)
        for file in whole:
            copied = Path(shutil.copy(path if path.name == file.name else file, run / file.relative_to(place)))
            if copied.name == "run.json":
                _checksum_again(copied)
            elif copied.suffix == ".parquet" and checksummed.has_checksum(copied) is False:
                checksummed.checksum(copied)
        connection = connect(Workspace(path.parent / "ws"))
        for table in tables(connection):
            list(ask(connection, f'select * from "{table}"').blocks)

    return Fuzzed(whole, read)


READERS: dict[str, Callable[[Path], Fuzzed]] = {
    "corpus": _corpus,
    "images": _images,
    "labels": _labels,
    "tar": _tar,
    "photo-archives": _photo_archives,
    "lmdb": _packed("crops.lmdb"),
    "parquet": _packed("crops.parquet"),
    "charset": _charset,
    "boxes": _boxes,
    "manifest": _manifest,
    "shards": _shards,
    "recipe": _recipe,
    "checkpoint": _checkpoint,
    "model": _model,
    "clip": _clip,
    "workspace": _workspace,
}
