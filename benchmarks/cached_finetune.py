"""Fine-tuning with a frozen image tower in the loop and from a word-crop store, side by side in one run.

loop     the tower sees every crop at every step, distorted anew
cached   `dptr embed-crops` has run it once over each crop's views; FMU and decoder learn from what it gave

Accuracy: both ways train from the same weights for the same steps, batches and seed, with the bundled CLIP, and read
the same validation crops; several seeds, since one pair differs by chance. Speed: single steps of both ways take
turns at the same batch, with the bundled CLIP and with a tower as large as ViT-B/16's, whose random weights are written
to disk and embedded from there; rates are medians, and what the store itself costs is told beside them. On a machine
that others use, too, processor time says more than the clock. Crops are rendered from made-up words if none are named.

Smallest size: --count 40 --views 2 --steps 2 --seeds 1 --batch 4 --rounds 1 --layers 1 --dim 64 --crops-timed 8
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from judged import at_least, usable_device
from plain_parseq import made_up_words
from torch import Tensor

from dptr.cache.charset import Charset
from dptr.cache.errors import run_script
from dptr.cache.normalization import Normalization
from dptr.cache.progress import set_quiet
from dptr.cache.stores.word_crops import WordCropStore
from dptr.cache.word_images.dataset import WordImages
from dptr.cache.word_images.writer import write_word_images
from dptr.pipeline.clip.bundled import BUNDLED
from dptr.pipeline.rendering.render_words import render_words
from dptr.pipeline.rendering.style import RenderStyle
from dptr.pipeline.word_crops.embed_crops import EmbedCropsSettings, EmbedCropsSummary, embed_crops
from dptr.trainer.data.image_batches import ImageBatches
from dptr.trainer.data.stored_batches import StoredBatches
from dptr.trainer.data.stored_crops import StoredCrops
from dptr.trainer.finetune import finetune
from dptr.trainer.model.encoders import build_encoder
from dptr.trainer.model.encoders.clip import ClipEncoder, describe
from dptr.trainer.model.encoders.given import GivenTokens
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.training.recipe import Recipe, load_recipe

CHARSET = Charset.named("94")
VALIDATION_SHARE = 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="labelled crops for the accuracy of both ways")
    parser.add_argument("--count", type=at_least(1), default=1500, help="crops rendered without --data")
    parser.add_argument("--views", type=at_least(1), default=8)
    parser.add_argument("--steps", type=at_least(1), default=600, help="of each training")
    parser.add_argument("--seeds", type=at_least(1), default=2)
    parser.add_argument("--batch", type=at_least(1), default=32)
    parser.add_argument("--rounds", type=at_least(1), default=10, help="steps timed of each way")
    parser.add_argument("--layers", type=at_least(1), default=12, help="of the large tower")
    parser.add_argument("--dim", type=at_least(1), default=768, help="of the large tower")
    parser.add_argument("--crops-timed", type=at_least(1), default=64, help="crops that the large tower embeds")
    parser.add_argument("--only", choices=("accuracy", "speed"), help="one of the two parts")
    parser.add_argument("--threads", type=at_least(1), help="of torch; its own choice by default")
    parser.add_argument("--device", type=usable_device, default="cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    set_quiet(True)
    with tempfile.TemporaryDirectory() as scratch:
        crops = arguments.data or render(Path(scratch), arguments.count)
        if arguments.only != "speed":
            compare_accuracy(crops, Path(scratch), arguments)
        if arguments.only != "accuracy":
            few = WordImages.open([crops], CHARSET, Normalization()).only(range(arguments.crops_timed))
            compare_speed("bundled CLIP", BUNDLED, few, Path(scratch), arguments)
            large = write_large_clip(Path(scratch) / "large", arguments.layers, arguments.dim)
            compare_speed(f"ViT {arguments.layers} x {arguments.dim}, patch 16", large, few, Path(scratch), arguments)


def render(scratch: Path, count: int) -> Path:
    """Render crops of made-up words, half of them as they are and half in capitals."""
    words = made_up_words(count)
    render_words(
        [word.upper() if number % 2 else word for number, word in enumerate(words)],
        scratch / "crops.parquet",
        count=count,
        style=RenderStyle.named("natural"),
    )
    return scratch / "crops.parquet"


def recipe_of(clip: Path, batch: int, *changes: str) -> Recipe:
    """The recipe `tiny` on the tower of ``clip``, which stays as it is."""
    frozen = ["encoder.kind=clip:" + str(clip), f"finetune.batch_size={batch}", "finetune.encoder_lr_scale=0"]
    return load_recipe("tiny", [*frozen, *changes]).replace("encoder", config=describe(clip))


def embed(crops: Path, clip: Path, out: Path, views: int, strength: float, device: str) -> EmbedCropsSummary:
    """Embed crops with ``clip``."""
    return embed_crops([crops], out, EmbedCropsSettings(str(clip), views=views, augmentation=strength, device=device))


def stored(folder: Path) -> StoredCrops:
    return StoredCrops.of([WordCropStore(folder)], CHARSET, Normalization())


def compare_accuracy(crops: Path, scratch: Path, arguments: argparse.Namespace) -> None:
    """Train both ways with the bundled CLIP, seed by seed, and print what each reads of the same validation crops."""
    often = 10 * arguments.steps
    lengths = [f"finetune.{key}={often}" for key in ("validate_every", "checkpoint_every", "log_every")]
    changes = [*lengths, f"finetune.steps={arguments.steps}", f"finetune.validation_share={VALIDATION_SHARE}"]
    recipe = recipe_of(BUNDLED, arguments.batch, *changes)
    strength = recipe.finetune.augmentation
    summary = embed(crops, BUNDLED, scratch / "store", arguments.views, strength, arguments.device)
    size = sum(path.stat().st_size for path in summary.out.iterdir())
    print(
        f"accuracy: bundled CLIP, {summary.crops:,} crops ({VALIDATION_SHARE:.0%} for validation), {arguments.steps} "
        f"steps of {arguments.batch}, {arguments.views} views embedded in {summary.seconds:.0f} s, {size / 1e6:.0f} MB"
    )
    data: dict[str, WordImages] = {
        "loop": WordImages.open([crops], CHARSET, Normalization()),
        "cached": stored(summary.out),
    }
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in data}
    for seed in range(arguments.seeds):
        for way, images in data.items():
            seeded = recipe.replace("finetune", seed=seed)
            out = scratch / f"{way}{seed}"
            result = finetune(images, CHARSET, None, seeded, out, arguments.device, encoder_model=BUNDLED)
            rows[way].append({**result.metrics, "seconds": result.seconds})
            shutil.rmtree(out)
            print(
                f"  seed {seed}  {way:6}  accuracy {result.metrics['accuracy']:6.1%}  36 characters "
                f"{result.metrics['accuracy_36']:6.1%}  1-NED {result.metrics['one_minus_ned']:.3f}  "
                f"{result.seconds:6.1f} s in all"
            )
    looped, cached = ([row["accuracy"] for row in rows[way]] for way in ("loop", "cached"))
    pairs = [one - other for one, other in zip(cached, looped, strict=True)]
    print(
        f"  mean accuracy {statistics.mean(looped):.1%} in the loop, {statistics.mean(cached):.1%} cached; cached less "
        f"loop, seed by seed: {', '.join(f'{100 * pair:+.1f}' for pair in pairs)} points"
    )


def compare_speed(name: str, clip: Path, crops: WordImages, scratch: Path, arguments: argparse.Namespace) -> None:
    """Time single steps of both ways, in turn, and what the store costs."""
    recipe = recipe_of(clip, arguments.batch)
    folder = scratch / f"timed {clip.name}"
    packed = pack(crops, folder.with_suffix(".parquet"))
    summary = embed(packed, clip, folder, arguments.views, recipe.finetune.augmentation, arguments.device)
    images, cached = WordImages.open([packed], CHARSET, Normalization()), stored(folder)
    steps = {"loop": looped_step(images, clip, recipe, arguments), "cached": cached_step(cached, recipe, arguments)}
    seconds: dict[str, list[float]] = {way: [] for way in steps}
    of_processor: dict[str, list[float]] = {way: [] for way in steps}
    for number in range(arguments.rounds + 1):
        for way, step in steps.items():
            started, busy = time.perf_counter(), time.process_time()
            step(number)
            if number:
                seconds[way].append(time.perf_counter() - started)
                of_processor[way].append(time.process_time() - busy)
    rates = {way: 1 / statistics.median(each) for way, each in seconds.items()}
    work = {way: statistics.median(each) for way, each in of_processor.items()}
    print(
        f"speed: {name}, {arguments.batch} crops a step, {cached.stores[0].tokens_per_crop} tokens of "
        f"{WordCropStore(folder).manifest.identity['dtype']}\n"
        f"  loop {rates['loop']:.3g} steps/s, cached {rates['cached']:.3g} steps/s: "
        f"{rates['cached'] / rates['loop']:.1f} times as fast\n"
        f"  processor time of a step: loop {work['loop']:.3g} s, cached {work['cached']:.3g} s, "
        f"{work['loop'] / work['cached']:.1f} times less\n"
        f"  the store took {1000 * summary.seconds / summary.rows:.1f} ms a view"
    )


def looped_step(
    images: WordImages, clip: Path, recipe: Recipe, arguments: argparse.Namespace
) -> Callable[[int], object]:
    encoder = build_encoder(recipe.encoder)
    assert isinstance(encoder, ClipEncoder)
    encoder.load(clip)
    encoder.requires_grad_(False)
    batches = ImageBatches(images, CHARSET, recipe, encoder.size[0], encoder.widths)
    return step_of(Recognizer(recipe, CHARSET, recipe.decoder.dim, encoder), batches, arguments)


def cached_step(crops: StoredCrops, recipe: Recipe, arguments: argparse.Namespace) -> Callable[[int], object]:
    tower = build_encoder(recipe.encoder)
    given = GivenTokens(tower.dim, tower.size, tower.grid)
    return step_of(
        Recognizer(recipe, CHARSET, recipe.decoder.dim, given), StoredBatches(crops, CHARSET, recipe), arguments
    )


def step_of(
    model: Recognizer, batches: ImageBatches | StoredBatches, arguments: argparse.Namespace
) -> Callable[[int], object]:
    """Return what takes one training step: batch, loss, gradients, update."""
    device = torch.device(arguments.device)
    model.to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, fused=True)

    def step(number: int) -> float:
        batch = batches(number)
        loss: Tensor = model.loss(batch.images.to(device), batch.targets.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())  # waits for the device

    return step


def pack(images: WordImages, out: Path) -> Path:
    """Write some word images into a file of their own."""
    with write_word_images(out) as writer:
        for sample in images.samples:
            writer.write(images.sources[sample.source].read(sample.key), sample.label)
    return out


def write_large_clip(folder: Path, layers: int, dim: int) -> Path:
    """Write the bundled CLIP with an image tower like ViT-B/16's, of random weights."""
    from transformers import AutoConfig, AutoModel

    shutil.copytree(BUNDLED, folder)
    config = AutoConfig.from_pretrained(BUNDLED)
    vision = {"hidden_size": dim, "intermediate_size": 4 * dim, "num_hidden_layers": layers, "image_size": 224}
    for key, value in {**vision, "num_attention_heads": dim // 64, "patch_size": 16, "projection_dim": 512}.items():
        setattr(config.vision_config, key, value)
    config.projection_dim = config.text_config.projection_dim = 512
    torch.manual_seed(0)
    made: Any = AutoModel
    made.from_config(config).save_pretrained(folder)
    prepared = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    prepared["size"] = {"height": 224, "width": 224}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared), encoding="utf-8")
    return folder


if __name__ == "__main__":
    run_script(main)
