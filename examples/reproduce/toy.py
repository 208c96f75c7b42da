"""Make what docs/reproduce.md needs at toy size: data sets in their layout, photos, a CLIP and a recipe.

    python examples/reproduce/toy.py toy && . toy/paths.sh

Then every command of the page runs as it stands, in a minute or two on one core, and reads nothing: the CLIP has random
weights (ViT-B/16's shape, scaled down), and a set has a dozen crops. Each set's toy count stands in toy/datasets.toml.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tomli_w
import torch
from PIL import Image, ImageDraw
from transformers import CLIPConfig, CLIPModel

from dptr.cache.crops.dataset import write_word_images
from dptr.cache.errors import run_script
from dptr.pipeline.clip import clip_files
from dptr.trainer.recipe import load_recipe, recipe_to_toml

DATASETS = Path(__file__).parent / "datasets.toml"
LATIN = [first + second for first in "bdfgklmnprst" for second in "aeiou"]
HAN = list("京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽")
TRAIN, TEST = 24, 12
SIZES = [
    *("decoder.dim=32", "decoder.heads=2", "decoder.layers=2", "decoder.feed_forward=64"),
    *("encoder.dim=32", "encoder.heads=2", "encoder.layers=2", "encoder.patch_height=16", "fmu.heads=2"),
    *("pretrain.steps=6", "pretrain.batch_size=8", "pretrain.workers=0", "pretrain.validate_every=3"),
    *("finetune.steps=6", "finetune.batch_size=8", "finetune.workers=0", "finetune.validate_every=3"),
    *("pretrain.needs_gpu=false", "finetune.needs_gpu=false"),
]


def main() -> None:
    """Parse, make."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make")
    out = parser.parse_args().out.absolute()
    rng = random.Random(0)
    described = tomllib.loads(DATASETS.read_text(encoding="utf-8"))
    for one in described["set"]:
        one["samples"] = TEST if "test" in one else TRAIN
        folder = out / "data" / one["path"]
        write_mlt(folder, one["samples"], rng) if "mlt/" in one["path"] else write_lmdb(folder, one["samples"], rng)
    (out / "datasets.toml").write_text(tomli_w.dumps(described), encoding="utf-8")
    write_photos(out / "photos")
    write_clip(out / "clip")
    recipe = load_recipe("paper", [*SIZES, f'pretrain.clip="{out / "clip"}"'])
    (out / "recipe.toml").write_text(recipe_to_toml(recipe), encoding="utf-8")
    paths = {"DATA": "data", "PHOTOS": "photos", "CLIP": "clip", "RECIPE": "recipe.toml", "SETS": "datasets.toml"}
    lines = [f"export {name}={out / path}" for name, path in paths.items()]
    (out / "paths.sh").write_text("\n".join([*lines, 'export CHINESE_CLIP="$CLIP"', ""]))
    print(f"{len(described['set'])} data sets in {out / 'data'}")


def word(letters: Sequence[str], rng: random.Random) -> str:
    """Return a made-up word of two to four of ``letters``."""
    return "".join(rng.choices(letters, k=rng.randint(2, 4)))


def picture(text: str, path: Path) -> bytes:
    """Write a small picture of ``text`` and return its bytes."""
    image = Image.new("RGB", (64, 20), "white")
    ImageDraw.Draw(image).text((4, 4), text, fill="black", font_size=12)
    image.save(path)
    return path.read_bytes()


def write_lmdb(folder: Path, count: int, rng: random.Random) -> None:
    """Write labelled crops in the field's LMDB layout, a folder with ``data.mdb``."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    letters = HAN if "bctr" in str(folder) else LATIN
    with write_word_images(folder.with_suffix(".lmdb")) as writer:
        for _ in range(count):
            text = word(letters, rng)
            writer.write(picture(text, folder.parent / "crop.png"), text)
    (folder.parent / "crop.png").unlink()
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lmdb").rename(folder)


def write_mlt(folder: Path, count: int, rng: random.Random) -> None:
    """Write pictures and the ground truth of MLT's task 2."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        script, letters = ("Chinese", HAN) if number % 2 else ("Latin", LATIN)
        text = word(letters, rng)
        picture(text, folder / f"word_{number}.png")
        lines.append(f"word_{number}.png,{script},{text}\n")
    (folder / "gt.txt").write_text("".join(lines), encoding="utf-8")


def write_photos(folder: Path) -> None:
    """Write as many photos as a toy batch has rows, and a few more."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for number in range(12):
        coarse = generator.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((96, 72)).save(folder / f"{number}.jpg")


def write_clip(folder: Path) -> None:
    """Save a CLIP of random weights: ViT-B/16's proportions at a sixteenth of the width, two layers."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copyfile(clip_files.BUNDLED / name, folder / name)
    config = CLIPConfig.from_pretrained(clip_files.BUNDLED)
    sizes = {"num_hidden_layers": 2, "projection_dim": 32}
    for key, value in {**sizes, "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2}.items():
        setattr(config.text_config, key, value)
    for key, value in {**sizes, "hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 3}.items():
        setattr(config.vision_config, key, value)
    config.text_config.max_position_embeddings = 77
    config.projection_dim = 32
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)


if __name__ == "__main__":
    run_script(main)
