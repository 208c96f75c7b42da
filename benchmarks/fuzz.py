"""Fuzzes every reader of foreign input: valid files are made, broken at random, and read.

A reader may refuse what it is given, in one line; it may not raise anything else, take longer than 10 s, or let this
process grow above 2 GB. Each reader works in a process of its own, so that even a crash is found; the broken file stays
in --keep. What is sealed with a hash is sealed again once it is broken, or nothing behind the seal would be tried.

Smallest size: --readers corpus images recipe --inputs 10
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import lzma
import os
import random
import resource
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
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
from plain_parseq import made_up_words

from dptr.cache import pictures
from dptr.cache.charset import Charset
from dptr.cache.errors import DptrError, disk_error
from dptr.cache.normalization import Normalization
from dptr.cache.progress import set_quiet
from dptr.cache.stores import checks, sealed
from dptr.cache.stores.quarantine import Quarantine
from dptr.cache.stores.verify import verify
from dptr.cache.word_images.dataset import WordImages
from dptr.cache.word_images.pack import pack_crops

LONGEST_SECONDS = 10
LARGEST_BYTES = 2 << 30
_INTERESTING = [
    b"\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80",
    b"-1",
    b"1e999",
    b"NaN",
    b"\n",
    b'"',
    b"{",
    b"[" * 50,
]


@dataclass(frozen=True)
class Fuzzed:
    """Valid files of one kind, and how they are read: a file in, nothing out."""

    seeds: list[Path]
    read: Callable[[Path], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--minutes", type=float, default=60.0, help="of each reader")
    parser.add_argument("--inputs", type=int, help="of each reader, in place of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for inputs that were not refused as they should be")
    arguments = parser.parse_args()
    set_quiet(True)
    found = 0
    for name in arguments.readers:
        with tempfile.TemporaryDirectory(prefix="dptr-fuzz-") as place:
            fuzzed = READERS[name](Path(place))
            limits = (arguments.minutes * 60, arguments.inputs)
            counts = fuzz(fuzzed, Path(place), arguments.seed, limits, arguments.keep)
        found += counts["found"]
        print(f"{name}: {json.dumps(counts)}", flush=True)
    sys.exit(bool(found))


def fuzz(
    fuzzed: Fuzzed, place: Path, seed: int, limits: tuple[float, int | None], keep: Path | None
) -> dict[str, int | float]:
    """Read broken files until the time or their number is used up; return how many were refused, read, and wrong."""
    counts: dict[str, int | float] = {"inputs": 0, "read": 0, "refused": 0, "found": 0, "slowest": 0.0, "largest_mb": 0}
    ends, known = time.monotonic() + limits[0], set[str]()
    while time.monotonic() < ends and (limits[1] is None or counts["inputs"] < limits[1]):
        report = place / "report.json"
        child = os.fork()
        if child == 0:
            _work(fuzzed, place, seed + int(counts["inputs"]), ends, limits[1], report)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        lines = [json.loads(line) for line in report.read_text().splitlines()]
        report.unlink()
        for line in lines:
            counts["inputs"] += 1
            counts[line["came"]] = counts.get(line["came"], 0) + 1
            counts["slowest"] = max(counts["slowest"], line["seconds"])
            counts["largest_mb"] = max(counts["largest_mb"], line["mb"])
        died = status != 0 and f"the reader ended with {status}"
        for problem in {line["problem"] for line in lines if line["problem"]} | ({died} if died else set()):
            counts["found"] += problem not in known
            if problem not in known:
                known.add(problem)
                print(f"  {problem}", flush=True)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                for left in place.glob("wrong-*"):
                    shutil.copy(left, keep / left.name)
        if not lines:
            break
    return counts


def _work(fuzzed: Fuzzed, place: Path, seed: int, ends: float, inputs: int | None, report: Path) -> None:
    """Read broken files in this process, a line of the report for each; stop at the first that is wrong."""
    signal.signal(signal.SIGALRM, _too_long)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    generator, tried = random.Random(seed), 0
    for source in fuzzed.seeds:  # what is not read as it is would only try the reader's front door
        shutil.rmtree(place / "broken", ignore_errors=True)
        (place / "broken").mkdir()
        fuzzed.read(Path(shutil.copy(source, place / "broken")))
    with report.open("w") as told:
        while time.monotonic() < ends and (inputs is None or tried < inputs):
            source = generator.choice(fuzzed.seeds)
            broken = place / "broken" / source.name
            shutil.rmtree(broken.parent, ignore_errors=True)
            broken.parent.mkdir()
            broken.write_bytes(mutated(source.read_bytes(), generator, source.suffix))
            started, came, problem = time.monotonic(), "read", ""
            signal.alarm(LONGEST_SECONDS)
            try:
                fuzzed.read(broken)
            except DptrError as error:
                came, problem = "refused", "more than one line" if "\n" in str(error) else ""
            except TimeoutError:
                came, problem = "hung", f"{source.name}: longer than {LONGEST_SECONDS} s"
            except Exception as error:
                came, problem = "refused", "" if disk_error(error) else _where(error)
            finally:
                signal.alarm(0)
            mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            problem = problem or (f"{mb:.0f} MB" if mb * 1024**2 > LARGEST_BYTES else "")
            line = {"came": came, "problem": problem, "seconds": round(time.monotonic() - started, 2), "mb": round(mb)}
            told.write(json.dumps(line) + "\n")
            told.flush()
            tried += 1
            if problem:
                shutil.copy(broken, place / f"wrong-{seed}-{tried}-{source.name}")
                break
    os._exit(0)


def mutated(data: bytes, generator: random.Random, suffix: str = "") -> bytes:
    """Break bytes in one to eight places: bits flipped, pieces cut, doubled, moved, or replaced."""
    if suffix == ".json" or suffix == ".toml":
        data = (
            data[: data.rfind(b"dptr-sha256:")] + data[data.rfind(b"dptr-sha256:") + 76 :]
            if b"dptr-sha256:" in data
            else data
        )
    broken = bytearray(data)
    for _ in range(generator.choice((1, 1, 1, 2, 4, 8))):
        at = generator.randrange(len(broken) + 1)
        piece = bytes(broken[at : at + generator.choice((1, 4, 16, 200))])
        match generator.randrange(7):
            case 0 if at < len(broken):
                broken[at] ^= 1 << generator.randrange(8)
            case 1:
                del broken[at : at + len(piece)]
            case 2:
                broken[at:at] = piece * generator.choice((1, 2, 100))
            case 3:
                broken[at : at + 4] = generator.randbytes(4)
            case 4:
                broken[at:at] = generator.choice(_INTERESTING)
            case 5:
                elsewhere = generator.randrange(len(broken) + 1)
                broken[elsewhere : elsewhere + len(piece)] = piece
            case 6 if generator.random() < 0.2:
                del broken[at:]
    return bytes(broken)


def _too_long(*_: Any) -> None:
    raise TimeoutError


def _where(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/dptr/" in frame.filename]
    place = ours[-1] if ours else last
    return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:120]}"


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
    files = [folder / "labels.tsv", _written(place / "metadata.jsonl", listed.encode())]
    files.append(_written(place / "labels.txt", "".join(f"{n}.png {word}\n" for n, word in enumerate(words)).encode()))
    files.append(_written(place / "labels.csv", "".join(f"{n}.png,{word}\n" for n, word in enumerate(words)).encode()))

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
    for name, mode in (("shard.tar", "w"), ("shard.tar.gz", "w:gz")):
        with tarfile.open(place / name, mode) as archive:
            for number, word in enumerate(made_up_words(6)):
                archive.add(folder / f"{number}.png", f"{number}.png")
                _written(place / f"{number}.txt", word.encode())
                archive.add(place / f"{number}.txt", f"{number}.txt")
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
    files = [_written(place / "recipe.toml", recipe_to_toml(Recipe()).encode()), *sorted(bundled.glob("*.toml"))]

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


if __name__ == "__main__":
    main()
