"""Labelled crops by the million: how fast they open, and what they cost a training and each of its workers.

Crops are made up: one of 64 small pictures each, in one LMDB, under labels of their own. What was done before, an
object in memory for each crop, is measured beside what is done now, in processes of their own: opening for the first
time, when labels are judged and listed, opening again, choosing crops for validation, the identity that a run saves,
and batches made by workers, which are forks of the training, or started anew (spawn) as systems without forks do. A
process's own memory (USS) is what would be free again if it alone ended, less what it was before crops were opened;
pages of the data that it alone has mapped count to it, so memory without pages of files is named apart.

Smallest size: --crops 200 --batches 2 --workers 1
"""

from __future__ import annotations

import argparse
import hashlib
import io
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from judged import at_least
from own_memory import OwnMemory, megabytes_without_files, own_megabytes
from PIL import Image

from dptr.cache.charset import Charset
from dptr.cache.errors import run_script
from dptr.cache.normalization import Normalization
from dptr.cache.progress import set_quiet
from dptr.cache.validation import validation_position
from dptr.cache.word_images.dataset import WordImages, decode_crop
from dptr.cache.word_images.form import Refused
from dptr.cache.word_images.listing import usable_label
from dptr.cache.word_images.samples import Sample, Samples
from dptr.cache.word_images.sources import find_sources
from dptr.cache.word_images.split import split
from dptr.cache.word_images.writer import write_word_images
from dptr.trainer.data.image_batches import ImageBatches
from dptr.trainer.recipe import load_recipe
from dptr.trainer.training.loader import load_batches

CHARSET, NORMALIZATION = Charset.named("94"), Normalization()
SHARE, SEED = 0.01, 1
Done = TypeVar("Done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=at_least(1), default=2_000_000)
    parser.add_argument("--batches", type=at_least(1), default=64)
    parser.add_argument("--workers", type=at_least(0), default=4)
    parser.add_argument("--only", choices=("objects", "columns"), help="one of the two ways alone")
    parser.add_argument("--data", type=Path, help="NAME.lmdb: measured, or made where there is none")
    parser.add_argument("--measure", choices=("objects", "columns", "columns again"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_quiet(True)
    if arguments.measure:
        measure(arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = arguments.data or Path(scratch) / "crops.lmdb"
        if not data.exists():
            if data.suffix != ".lmdb":
                parser.error(f"there is no {data}, and what is made is an LMDB: --data {data}.lmdb")
            write_crops(data, arguments.crops)
        print(f"{'':58}{'seconds':>10}{'of CPU':>10}{'own MB':>10}{'without files':>15}")
        # In processes of their own: what one holds is not what another left behind.
        asked = ["--data", str(data), "--batches", str(arguments.batches), "--workers", str(arguments.workers)]
        for way in ("objects", "columns", "columns again"):
            if not arguments.only or way.startswith(arguments.only):
                subprocess.run([sys.executable, __file__, "--measure", way, *asked], check=True)


def measure(arguments: argparse.Namespace) -> None:
    tell = Tell(arguments.measure)
    images: WordImages
    training: WordImages
    if arguments.measure == "objects":
        images = tell("opened", lambda: objects_of(arguments.data))
        tell("identity", lambda: hashlib.sha256("\n".join(listed(images)).encode()).hexdigest())
        training = tell("validation chosen", lambda: split_objects(images))
    else:
        images = tell("opened", lambda: WordImages.open([arguments.data], CHARSET, NORMALIZATION))
        tell("identity", images.identity)
        training = tell("validation chosen", lambda: split(images, SHARE, SEED)[0])
    batches = tell("first batch", lambda: batches_of(training))
    for start in ("fork", "spawn"):
        if arguments.workers and start in multiprocessing.get_all_start_methods():
            multiprocessing.set_start_method(start, force=True)
            tell.workers(start, batches, arguments.batches, arguments.workers)


class Objects(WordImages):
    """The crops as the first versions held them: ``samples`` is a list."""

    def image(self, index: int) -> Image.Image:
        """Return the image of sample ``index``."""
        sample = self.samples[index]
        return decode_crop(self.sources[sample.source].read(sample.key))


def objects_of(path: Path) -> Objects:
    """Judge every label and make an object of each crop."""
    samples: list[Any] = []
    sources = find_sources(path)
    for source in sources:
        for key, raw in source.labels():
            label = raw if isinstance(raw, Refused) else usable_label(raw, CHARSET, NORMALIZATION)
            if not isinstance(label, Refused):
                samples.append(Sample(source.name, key, label))
    return Objects(cast(Samples, samples), sources={source.name: source for source in sources})


def listed(images: WordImages) -> list[str]:
    return [f"{sample.key}\t{sample.label}" for sample in images.samples]


def split_objects(images: WordImages) -> WordImages:
    """Leave out the crops for validation."""
    chosen = [validation_position(line, SEED) < SHARE for line in listed(images)]
    samples = [sample for sample, is_chosen in zip(images.samples, chosen, strict=True) if not is_chosen]
    return replace(images, samples=cast(Samples, samples))


def batches_of(images: WordImages) -> ImageBatches:
    """Return what makes batches, and have it make the first."""
    batches = ImageBatches(images, CHARSET, load_recipe("tiny"), 32, [128])
    batches(0)
    return batches


class Tell:
    """Prints what each step took, and what the process holds of its own behind it."""

    def __init__(self, way: str) -> None:
        self._way, self._before = way, (own_megabytes(), megabytes_without_files())

    def __call__(self, what: str, step: Callable[[], Done]) -> Done:
        """Take a step and print a line of it."""
        started, spent = time.perf_counter(), time.process_time()
        done = step()
        seconds, of_cpu = time.perf_counter() - started, time.process_time() - spent
        own, without_files = own_megabytes() - self._before[0], megabytes_without_files() - self._before[1]
        line = f"{f'{self._way}: {what}':58}{seconds:10.2f}{of_cpu:10.2f}{own:10.0f}{without_files:15.0f}"
        print(line, flush=True)
        return done

    def workers(self, start: str, batches: ImageBatches, count: int, workers: int) -> None:
        """Let workers make batches, and print what each holds at most."""
        held = [0.0] * workers
        started = time.perf_counter()
        for number, own in load_batches(OwnMemory(batches), range(count), workers):
            held[number] = max(held[number], own)
        told = ", ".join(f"{own:.0f}" for own in held)
        what = f"{self._way}: {count} batches by workers ({start})"
        print(f"{what:58}{time.perf_counter() - started:10.2f}; own MB of each: {told}", flush=True)


def write_crops(path: Path, count: int) -> None:
    started = time.perf_counter()
    generator = np.random.default_rng(0)
    letters = np.frombuffer("".join(CHARSET.characters[:62]).encode(), np.uint8)
    pictures = [encoded(generator) for _ in range(64)]
    with write_word_images(path) as writer:
        for number, length in enumerate(generator.integers(3, 13, count).tolist()):
            label = letters[generator.integers(0, len(letters), length)].tobytes().decode()
            writer.write(pictures[number % len(pictures)], label)
    size = path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())
    print(f"{count:,} crops, {size / 1e6:,.0f} MB, made in {time.perf_counter() - started:.0f} s")


def encoded(generator: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (8, 24), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


if __name__ == "__main__":
    run_script(main)
