"""What one GPU does with the paper's three stages, in under ten minutes; writes one page.

    python benchmarks/gpu.py --out gpu.md

stage 1  CLIP ViT-B/16 (random weights) on prompts of the full context, and on photos; bf16
stage 2  recipe `paper`: 768 rows a step from a prompt store and an ORP bank, through the loader
stage 3  recipe `paper`: 768 crops a step from an LMDB, read, distorted and resized by workers, through the loader

Of each: rows a second; the share of the card's bf16 rate (operations over the rate of products of large matrices in
the same run); the loader's share of the time; the most memory that torch allocated. Then the tests that need a GPU run.
Where there is none, sizes are toy ones, and the page lists what was skipped.

Smallest size: --seconds 1 --out OUT
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import at_least, made_up_words, save_clip, usable_device
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
#: Side of the matrices: large enough that nothing but the products counts.
_SIDE = {"cuda": 8192, "cpu": 1024}
_ROUNDS = 5
#: Of the whole run, which is to take less than ten minutes.
_TEST_SECONDS = 240
_WORDS, _CROPS, _PHOTOS = {"cuda": 8192, "cpu": 64}, {"cuda": 4096, "cpu": 32}, {"cuda": 1024, "cpu": 12}
_TOY = [
    *("decoder.dim=32", "decoder.heads=2", "decoder.layers=2", "decoder.feed_forward=64", "pretrain.batch_size=8"),
    *("encoder.dim=32", "encoder.heads=2", "encoder.layers=2", "encoder.patch_height=16", "fmu.heads=2"),
    *("finetune.batch_size=8", "pretrain.workers=0", "finetune.workers=0"),
]


def peak(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of matrix products in fp32 or bf16: the best of a few rounds."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side = _SIDE.get(device.type, 1024)
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    rates = []
    for _ in range(1 + _ROUNDS):  # the first one is slow
        started = now(device)
        _ = one @ other
        rates.append(2 * side**3 / (now(device) - started))
    return max(rates[1:])


def now(device: torch.device) -> float:
    """Seconds, once the device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Measured:
    """A stage: rows a second, operations a second, share of the time spent waiting for batches, bytes at most."""

    stage: str
    rows: float
    operations: float
    loader: float | None
    memory: int

    def line(self, most: float, on_gpu: bool) -> str:
        """Return a row of the page's table."""
        loader = "-" if self.loader is None else f"{self.loader:.1%}"
        memory = f"{self.memory / 1e9:.1f}" if on_gpu else "skipped"
        return f"| {self.stage} | {self.rows:,.0f} | {self.operations / most:.1%} | {loader} | {memory} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=at_least(1), default=40, help="of each measurement, after it is warm")
    parser.add_argument("--out", type=Path, default=Path("gpu.md"), help="the page")
    parser.add_argument("--device", type=usable_device, default="auto")
    arguments = parser.parse_args()
    from dptr.cache.progress import set_quiet

    set_quiet(True)
    device, started = torch.device(arguments.device), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        measured = list(measure(Path(folder), device, arguments.seconds))
    page = page_of(device, measured, tests(device), time.perf_counter() - started)
    arguments.out.write_text(page, encoding="utf-8")
    print(page)


def page_of(device: torch.device, measured: list[Measured], tested: str, seconds: float) -> str:
    """Return the page as Markdown."""
    on_gpu = device.type == "cuda"
    most = peak(device, "bf16")
    card = torch.cuda.get_device_name(device) if on_gpu else f"no GPU ({platform.processor() or platform.machine()})"
    lines = [
        "# dptr on one GPU",
        f"{card}, torch {torch.__version__}. Products of matrices in bf16: {most / 1e12:.1f} TFLOP/s. {seconds:.0f} s.",
        "| stage | rows/s | of that rate | waiting for batches | memory, GB |\n| --- | --- | --- | --- | --- |\n"
        + "\n".join(one.line(most, on_gpu) for one in measured),
        f"Tests that need a GPU: {tested}",
    ]
    if not on_gpu:
        lines.append("Skipped, as there is no GPU: the paper's sizes (figures are of toy sizes), memory, these tests.")
    return "\n\n".join(lines) + "\n"


def tests(device: torch.device) -> str:
    """Run the tests marked ``gpu`` and return pytest's last line."""
    if device.type != "cuda":
        return "skipped"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/trainer/test_gpu.py"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_TEST_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {_TEST_SECONDS} s"
    failed = re.findall(r"^FAILED .*", done.stdout, re.MULTILINE)
    return "; ".join([(done.stdout.splitlines() or [done.stderr[-200:]])[-1].strip(" ="), *failed])


def measure(folder: Path, device: torch.device, seconds: float) -> Iterator[Measured]:
    """Yield the figures of each stage."""
    from dptr.trainer.recipe import load_recipe

    on_gpu = device.type == "cuda"
    recipe = load_recipe("paper", [] if on_gpu else _TOY)
    words = made_up_words(_WORDS[device.type])
    (folder / "words.txt").write_text("\n".join(words), encoding="utf-8")
    save_clip(folder / "clip", *(["text", "vision"] if on_gpu else []))
    yield from stage_one(folder, device, seconds / 2)
    yield stage_two(folder, device, recipe, seconds)
    yield stage_three(folder, device, recipe, words, seconds)


def stage_one(folder: Path, device: torch.device, seconds: float) -> Iterator[Measured]:
    """Yield figures of the text encoder and of the image encoder, and leave a prompt store and a bank in ``folder``."""
    from dptr.pipeline.clip.loading import ImageEncoder, load_clip
    from dptr.pipeline.clip.text_encoder import TextEncoder
    from dptr.pipeline.photos.build_orp_bank import OrpBankSettings, build_orp_bank
    from dptr.pipeline.text.embed_text import EmbedTextSettings, embed_text
    from dptr.pipeline.text.templates import Template

    name, precision = str(folder / "clip"), "bf16" if device.type == "cuda" else "fp32"
    clip = load_clip(name, precision, str(device))  # type: ignore[arg-type]  # one of two literals
    encoder, images = TextEncoder(clip, Template(), context="full"), ImageEncoder(clip)
    words = (folder / "words.txt").read_text(encoding="utf-8").split()
    ids = encoder.tokenize([Template().prompt(word) for word in words[:2048]])
    own = clip.model.config.text_config.max_position_embeddings - len(encoder.prefix_ids)
    each = encoder_operations(clip.model.config.text_config, own)
    yield rate_of("stage 1, prompts", device, seconds, lambda: (encoder.encode(ids), len(ids))[1], each)
    photos = folder / "photos"
    photos.mkdir()
    generator = np.random.default_rng(0)
    for number in range(_PHOTOS[device.type]):
        coarse = generator.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(coarse).resize((320, 240)).save(photos / f"{number}.jpg")
    with Image.open(photos / "0.jpg") as photo:
        pixels = np.repeat(images.preprocess(photo)[None], images.batch, axis=0)
    each = encoder_operations(clip.model.config.vision_config, images.tokens)
    yield rate_of("stage 1, photos", device, seconds, lambda: (images.encode(pixels), len(pixels))[1], each)
    settings = EmbedTextSettings(clip=name, context="full", device=str(device))
    embed_text([str(folder / "words.txt")], folder / "prompts", settings)
    whole = OrpBankSettings(clip=name, crops_per_image=1, kind="whole", device=str(device))
    build_orp_bank([photos], folder / "orp", whole)


def encoder_operations(config: Any, tokens: int) -> float:
    """Return floating-point operations of one row in a transformer: its weights' products, and attention."""
    width, inner = config.hidden_size, config.intermediate_size
    weights = 4 * width * width + 2 * width * inner
    return float(config.num_hidden_layers * (2 * tokens * weights + 4 * tokens * tokens * width))


def stage_two(folder: Path, device: torch.device, recipe: Any, seconds: float) -> Measured:
    """Return figures of pre-training."""
    from dptr.cache.row_set import RowSet
    from dptr.cache.stores.orp import OrpBank
    from dptr.cache.stores.prompts import PromptStore
    from dptr.trainer.data.prompt_batches import NoiseSource, PromptBatches
    from dptr.trainer.model.decoders import build_decoder

    store = PromptStore(folder / "prompts")
    noise = NoiseSource(OrpBank(folder / "orp"), recipe.noise, None)
    batches = PromptBatches(store, noise, RowSet.of(np.arange(len(store)), len(store)), recipe)
    decoder = build_decoder(recipe.decoder, len(store.charset.characters), store.dim).to(device)

    def loss(batch: Any) -> tuple[Tensor, int]:
        given = batch.to(device)
        return decoder.loss(given.memory, given.targets), len(given.targets.inputs)

    return trained("stage 2", device, seconds, decoder, batches, loss, recipe.pretrain)


def stage_three(folder: Path, device: torch.device, recipe: Any, words: list[str], seconds: float) -> Measured:
    """Return figures of fine-tuning."""
    from dptr.cache.crops.dataset import WordImages, write_word_images
    from dptr.cache.text.charset import Charset
    from dptr.cache.text.normalization import Normalization
    from dptr.trainer.data.image_batches import ImageBatches
    from dptr.trainer.model.recognizer import Recognizer

    with write_word_images(folder / "crops.lmdb") as writer:
        for word in words[: _CROPS[device.type]]:
            image, encoded = Image.new("RGB", (160, 48), "white"), BytesIO()
            ImageDraw.Draw(image).text((8, 12), word, fill="black", font_size=18)
            image.save(encoded, "JPEG")
            writer.write(encoded.getvalue(), word)
    charset = Charset.named("94")
    images = WordImages.open([folder / "crops.lmdb"], charset, Normalization())
    model = Recognizer(recipe, charset, 512 if device.type == "cuda" else 32).to(device)
    height, width = model.image_size
    batches = ImageBatches(images, charset, recipe, height, [width])

    def loss(batch: Any) -> tuple[Tensor, int]:
        given = batch.to(device)
        return model.loss(given.images, given.targets), len(given.images)

    return trained("stage 3", device, seconds, model, batches, loss, recipe.finetune)


def trained(
    stage: str,
    device: torch.device,
    seconds: float,
    model: nn.Module,
    batches: Callable[[int], Any],
    loss: Callable[[Any], tuple[Tensor, int]],
    settings: Any,
) -> Measured:
    """Train through the loader as the loop does, for so many seconds after a few steps."""
    from dptr.trainer.training.loop import load_batches

    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, fused=True)
    loaded = load_batches(batches, range(10**6), settings.workers, device.type == "cuda")
    waited = 0.0
    model.train()

    def step() -> int:
        nonlocal waited
        waiting = time.perf_counter()
        batch = next(loaded)
        waited += time.perf_counter() - waiting
        with torch.autocast(device.type, torch.bfloat16):
            value, rows = loss(batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        return rows

    def forget_waiting() -> None:
        nonlocal waited
        waited = 0.0

    return rate_of(stage, device, seconds, step, warm_up=3, after_warm_up=forget_waiting, waited=lambda: waited)


def rate_of(
    stage: str,
    device: torch.device,
    seconds: float,
    work: Callable[[], int],
    operations: float | None = None,
    warm_up: int = 1,
    after_warm_up: Callable[[], None] = lambda: None,
    waited: Callable[[], float] | None = None,
) -> Measured:
    """Repeat work that returns its rows for so many seconds; operations of a row, if not given, are counted first."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if operations is None:
        with FlopCounterMode(display=False) as counter:
            counted = work()
        operations = counter.get_total_flops() / counted
    for _ in range(warm_up):
        work()
    after_warm_up()
    started, rows = now(device), 0
    while time.perf_counter() - started < seconds:
        rows += work()
    taken = now(device) - started
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return Measured(stage, rows / taken, operations * rows / taken, waited() / taken if waited else None, memory)


if __name__ == "__main__":
    from dptr.cache.errors import run_script

    run_script(main)
