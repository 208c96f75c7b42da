"""Every reader of foreign input, with valid files for it: for ``fuzz.py``."""

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
from plain_parseq import made_up_words

from dptr.cache import pictures
from dptr.cache.charset import Charset
from dptr.cache.errors import DptrError
from dptr.cache.normalization import Normalization
from dptr.cache.stores import checks, sealed
from dptr.cache.stores.quarantine import Quarantine
from dptr.cache.stores.verify import verify
from dptr.cache.word_images.dataset import WordImages
from dptr.cache.word_images.pack import pack_crops


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
    files = [place / "w.parquet", *(_written(place / name, data) for name, data in seeds.items())]

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
    files = [folder / "labels.tsv", _written(place / "labels.jsonl", listed.encode())]
    for name, line in (("gt.txt", '{}.png, "{}"\n'), ("rec_gt_train.txt", "{}.png\t{}\n")):
        files.append(_written(place / name, "".join(line.format(n, word) for n, word in enumerate(words)).encode()))

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
            archive.add(_written(place / f"{number}.txt", word.encode()), f"{number}.txt")
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


def _manifest(place: Path) -> Fuzzed:
    from dptr.cache.stores.prompts import PromptStore
    from dptr.cli import run_command

    words = _written(place / "words.txt", "\n".join(made_up_words(60)).encode())
    run_command(["embed-text", str(words), "-o", str(place / "store"), "--shard-rows", "20", "--quiet"])

    def read(path: Path) -> None:
        for file in (place / "store").iterdir():
            if file.name != path.name:
                os.link(file, path.parent / file.name)
        _seal_again(path)
        if not verify(path.parent):
            store = PromptStore(path.parent)
            _ = store.charset, store.labels, store.prefix, store.states(np.arange(len(store)))
        checks.finish()

    return Fuzzed([place / "store" / "manifest.json"], read)


def _seal_again(path: Path) -> None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict):
            value.pop("seal", None)
            sealed.write_json(path, {"format_version": 2, **value})
    except (ValueError, RecursionError):
        pass


def _recipe(place: Path) -> Fuzzed:
    from dptr.trainer.training.recipe import Recipe, load_recipe, load_saved_recipe, recipe_to_toml

    bundled = Path(__file__).parent.parent / "recipes"
    files = [
        _written(place / "recipe.toml", recipe_to_toml(Recipe()).encode()),
        *sorted(path for path in bundled.glob("*.toml") if "ablate" not in path.name),
    ]

    def read(path: Path) -> None:
        text = path.read_bytes().decode("utf-8", "replace")
        load_saved_recipe(text, str(path))
        load_recipe(str(path))

    return Fuzzed(files, read)


def _checkpoint(place: Path) -> Fuzzed:
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    from dptr.trainer.model.model_file import BUNDLED, ModelFile
    from dptr.trainer.training.checkpoint import load_state, load_tensors, save_checkpoint

    save_checkpoint(place / "last", {"model": {"w": torch.ones(4, 5), "b": torch.zeros(7)}}, {"step": 3})
    with safe_open(BUNDLED, "pt") as file:
        save_file({"w": torch.ones(4, 5)}, place / "model_file.safetensors", file.metadata())

    def read(path: Path) -> None:
        if path.name == "model_file.safetensors":
            if sealed.is_sealed(path) is False:
                sealed.seal(path)
            ModelFile.open(path)
            return
        other = {"state.json": "model.safetensors", "model.safetensors": "state.json"}[path.name]
        shutil.copy(place / "last" / other, path.parent)
        if path.name == "state.json":
            _seal_again(path)
            load_state(path.parent)
        load_tensors(path.parent, "model")

    seeds = [place / "last" / "state.json", place / "last" / "model.safetensors"]
    return Fuzzed([*seeds, place / "model_file.safetensors"], read)


def _query(place: Path) -> Fuzzed:
    from dptr.cache.sql.query import ask
    from dptr.cache.sql.views import connect
    from dptr.cache.workspace import Workspace
    from dptr.cli import run_command

    words = _written(place / "words.txt", "\n".join(made_up_words(60)).encode())
    run_command(["embed-text", str(words), "--workspace", str(place / "ws"), "--quiet"])
    questions = [
        "select label, n_tokens from prompts order by n_tokens desc limit 10",
        "select a.label, b.label from prompts a join prompts b using (n_tokens) where a.id < 5 and b.id < 5",
        "with x as (select unnest(token_ids) as t from prompts) select t, count(*) from x group by t order by 2",
        "select array_cosine_similarity(pooled::float[128], pooled::float[128]) from prompts limit 3",
        "select regexp_replace(label, '[aeiou]', '_', 'g'), '\u6771' from prompts where label like '%a%'",
    ]
    files = [_written(place / f"{number}.sql", text.encode()) for number, text in enumerate(questions)]

    def read(path: Path) -> None:
        answer = ask(connect(Workspace(place / "ws")), path.read_bytes().decode("utf-8", "surrogateescape"))
        for _, _block in zip(range(100), answer.blocks, strict=False):
            pass

    return Fuzzed(files, read)


def _written(path: Path, data: bytes) -> Path:
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
    "manifest": _manifest,
    "recipe": _recipe,
    "checkpoint": _checkpoint,
    "query": _query,
}
