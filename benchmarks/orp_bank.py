"""How fast a bank is made and read: the command against the bare model, its noise against a plain copy of its bytes.

Weights are random, at ViT-B/16's size: they cost what trained ones cost. Rates hold for this machine, ratios travel.

Smallest size: PHOTOS --quick --seconds 0.1 --crops-per-image 2 --batch 4 --gigabytes 0.01 --batches 4
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from common import at_least, save_clip
from numpy.typing import NDArray
from PIL import Image

from dptr.cache.errors import run_script
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.orp import CATALOGUE_SCHEMA, OrpBank
from dptr.cache.stores.shards import Embeddings, EmbeddingsFile, write_shard
from dptr.pipeline.clip.loading import ImageEncoder, load_clip
from dptr.pipeline.photos.build_orp_bank import OrpBankSettings, build_orp_bank

DIM, TOKENS, SHARD_ROWS = 512, 197, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="*", help="photos for the bank; none: measure noise only")
    parser.add_argument("--crops-per-image", type=at_least(1), default=8)
    parser.add_argument("--batch", type=at_least(1), default=32)
    parser.add_argument("--workers", type=at_least(0), default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the bare model is timed, twice")
    parser.add_argument("--quick", action="store_true", help="the bundled CLIP: only shows that it runs")
    parser.add_argument("--gigabytes", type=float, default=5.0, help="size of the bank that noise is read from")
    parser.add_argument("--batches", type=at_least(1), default=200, help="batches of noise of 256 rows")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.photos:
            measure_making(arguments, Path(folder))
        if arguments.gigabytes:
            measure_noise(arguments, Path(folder))


def measure_making(arguments: argparse.Namespace, folder: Path) -> None:
    if not arguments.quick:
        save_clip(folder / "vit-b-16", "vision")
    settings = OrpBankSettings(
        clip="tiny" if arguments.quick else str(folder / "vit-b-16"),
        precision=arguments.precision,
        crops_per_image=arguments.crops_per_image,
        batch=arguments.batch,
        workers=arguments.workers,
    )
    encoder = ImageEncoder(load_clip(settings.clip, settings.precision))
    # Before and after, so that a machine that warms up or is shared favours neither side.
    before = bare_rate(encoder, arguments.batch, arguments.seconds)
    summary = build_orp_bank(arguments.photos, folder / "bank", settings)
    bare = (before + bare_rate(encoder, arguments.batch, arguments.seconds)) / 2
    command = summary.computed / summary.seconds
    print(f"{summary.photos} photos, {summary.computed} crops, {Path(settings.clip).name}", end=", ")
    print(f"{settings.precision}, batch {settings.batch}")
    print(f"{'bare model on ready tensors':32} {bare:8.2f} crops/s   1.00")
    print(f"{'the whole command':32} {command:8.2f} crops/s   {command / bare:.2f}")


def bare_rate(encoder: ImageEncoder, batch: int, seconds: float) -> float:
    """Return the image encoder's crops a second on one batch that lies ready."""
    blank = encoder.preprocess(Image.new("RGB", (64, 64)))
    pixels = np.random.default_rng(0).standard_normal((batch, *blank.shape)).astype(np.float32)
    encoder.encode(pixels)
    started, crops = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        encoder.encode(pixels)
        crops += batch
    return crops / (time.perf_counter() - started)


def measure_noise(arguments: argparse.Namespace, folder: Path) -> None:
    bank = make_bank(folder / "large", arguments.gigabytes)
    size = sum(record.bytes for shard in bank.manifest.shards for record in shard.files.values())
    print(f"\nnoise in batches of 256 rows from a bank of {size / 1e9:.1f} GB; copying the same bytes is 1.00")
    for count in (12, 78):
        copy, drawn, added = noise_rates(bank, count, arguments.batches)
        print(f"{count} tokens a row: copy {copy:.0f} rows/s 1.00; noise {drawn / copy:.2f}", end=", ")
        print(f"added to a float32 memory {added / copy:.2f}")


def make_bank(folder: Path, gigabytes: float) -> OrpBank:
    folder.mkdir()
    rows = min(SHARD_ROWS, max(1, round(gigabytes * 1e9 / (TOKENS * DIM * 2))))
    manifest = Manifest("orp", {"encoder": "random", "weights": "random", "tokens_per_crop": TOKENS})
    embeddings = np.random.default_rng(0).standard_normal((rows * TOKENS, DIM), dtype=np.float32)
    names = [field.name for field in CATALOGUE_SCHEMA if field.name not in ("image", "image_sha256", "thumbnail")]
    columns = {**dict.fromkeys(names, [0] * rows), "image": [""] * rows, "image_sha256": [""] * rows}
    catalogue = pa.table({**columns, "thumbnail": [b""] * rows}, CATALOGUE_SCHEMA)
    content = Embeddings(embeddings, np.full(rows, TOKENS, np.int64), embeddings[:rows])
    for number in range(max(1, round(gigabytes * 1e9 / (embeddings.nbytes / 2)))):
        manifest.shards.append(write_shard(folder, number, catalogue, content, "float16", {"photos": 1}))
    manifest.save(folder)
    return OrpBank(folder)


def noise_rates(bank: OrpBank, count: int, batches: int) -> tuple[float, float, float]:
    """Return rows a second of a copy of the stored bytes, of the bank's noise, and of noise added to a memory."""
    files = [EmbeddingsFile(bank.folder / f"{shard.name}.arrow") for shard in bank.manifest.shards]
    generator = np.random.default_rng(count)
    copied = np.empty((256, count, DIM), np.float16)
    memory = torch.zeros((256, count, DIM))
    copying = drawing = adding = 0.0
    for _ in range(batches):
        crops, positions = draw(bank, count, generator)
        started = time.perf_counter()
        copy_out(files, crops, positions, copied)
        copying_done = time.perf_counter()
        drawn = bank.tokens(crops, positions)
        drawing_done = time.perf_counter()
        memory.add_(torch.from_numpy(drawn), alpha=0.1)
        adding += time.perf_counter() - copying_done
        drawing += drawing_done - copying_done
        copying += copying_done - started
    rows = 256 * batches
    return rows / copying, rows / drawing, rows / adding


def draw(bank: OrpBank, count: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw 256 crops and ``count`` sorted token positions of each."""
    positions = generator.permuted(np.tile(np.arange(TOKENS), (256, 1)), axis=1)[:, :count]
    return generator.integers(0, len(bank), 256), np.sort(positions)


def copy_out(
    files: list[EmbeddingsFile], crops: NDArray[np.int64], positions: NDArray[np.int64], out: NDArray[np.float16]
) -> None:
    """Copy the same stored bytes out of the maps, as they are."""
    rows = len(files[0].pooled)
    for row, (crop, chosen) in enumerate(zip(crops.tolist(), positions, strict=True)):
        np.take(files[crop // rows].tokens, crop % rows * TOKENS + chosen, axis=0, out=out[row], mode="clip")


if __name__ == "__main__":
    run_script(main)
