"""How often a labelled crop retrieves its own prompt among those of all crops given: a CLIP's zero-shot accuracy.

    python benchmarks/clip_retrieval.py --clip my_clip crops.parquet others.lmdb --photos photos/

Prints one line a data set: top-1 with its 95 % Wilson interval, and top-5. Each word counts once, with its first crop.
With ``--photos`` it also prints the cosine similarity of prompts with crops of their word, with crops of other words
and with random rectangles of photos (Fig. 1 of the paper).

For the bundled CLIP, render words that it never saw with the ``demo`` extra's fonts, which it never saw either:
``dptr.pipeline.clip.clip_files.is_held_out`` names the words.

Smallest size: CROPS --prompts 20 --photos PHOTOS
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from common import at_least
from numpy.typing import NDArray
from PIL import Image

from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import run_script
from dptr.cache.pictures import read_picture
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.clip.loading import ImageEncoder, load_clip
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.rendering.word_lists import photo_paths
from dptr.pipeline.text.templates import Template
from dptr.trainer.metrics import wilson

_BATCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crops", type=Path, nargs="+", help="labelled crops that the CLIP never saw")
    parser.add_argument("--clip", default="tiny", help="`tiny`, a directory or a hub id")
    parser.add_argument("--charset", default="94", help="of the labels")
    parser.add_argument("--prompts", type=at_least(1), default=1000, help="words of each data set")
    parser.add_argument("--photos", type=Path, help="photos without text, to compare similarities with")
    parser.add_argument("--seed", type=at_least(0), default=0, help="of the photos' rectangles")
    arguments = parser.parse_args()
    clip = load_clip(arguments.clip)
    texts, images = TextEncoder(clip, Template()), ImageEncoder(clip)
    photos = photo_paths(arguments.photos) if arguments.photos else []
    rng = np.random.default_rng(arguments.seed)
    print(f"{'':32}{'words':>7}{'top-1':>8}{'95 %':>16}{'top-5':>9}")
    for path in arguments.crops:
        charset = Normalization().charset(Charset.named(arguments.charset))
        opened = WordImages.open([path], charset, Normalization())
        first = {sample.label: row for row, sample in reversed(list(enumerate(opened.samples)))}
        rows = sorted(first.values())[: arguments.prompts]
        prompts = prompt_vectors(texts, [opened.samples[row].label for row in rows])
        similarities = image_vectors(images, [opened.image(row) for row in rows]) @ prompts.T
        own = np.arange(len(rows))[:, None]
        best = np.argsort(-similarities, 1)[:, :5]
        right = int((best[:, :1] == own).sum())
        low, high = wilson(right, len(rows))
        name, interval = f"{path.parent.name}/{path.name}", f"{low:.1%}-{high:.1%}"
        print(f"{name:32}{len(rows):7,}{right / len(rows):8.1%}{interval:>16}{(best == own).any(1).mean():9.1%}")
        if photos:
            rectangles = [rectangle(photos[i % len(photos)], rng) for i in range(len(rows))]
            print_similarities(similarities, image_vectors(images, rectangles) @ prompts.T)


def print_similarities(crops: NDArray[np.float32], photos: NDArray[np.float32]) -> None:
    """Print medians and 5 to 95 % ranges; both arrays are (images, prompts), the pairs on the diagonal of ``crops``."""
    groups = {
        "crops of that word": np.diag(crops),
        "crops of other words": crops[~np.eye(len(crops), dtype=bool)],
        "photos without text": photos.ravel(),
    }
    for name, values in groups.items():
        if len(values):
            low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
            print(f"  cosine with {name}: median {middle:.3f}, 5 to 95 %: {low:.3f} to {high:.3f}")


def prompt_vectors(encoder: TextEncoder, words: list[str]) -> NDArray[np.float32]:
    """Return the pooled vectors of the words' prompts, of length one: (words, dim)."""
    return unit(encoder.encode(encoder.tokenize([Template().prompt(word) for word in words])).pooled)


def image_vectors(encoder: ImageEncoder, images: list[Image.Image]) -> NDArray[np.float32]:
    """Return the pooled vectors of pictures, of length one: (images, dim)."""
    batches = (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))
    return unit(
        np.concatenate([encoder.encode(np.stack([encoder.preprocess(i) for i in batch]))[1] for batch in batches])
    )


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def rectangle(path: Path, rng: np.random.Generator) -> Image.Image:
    """Cut a random rectangle, from a fifth of each side up to the whole photo."""
    photo = read_picture(path)
    width, height = (np.array(photo.size) * rng.uniform(0.2, 1, 2)).astype(int)
    left, top = int(rng.integers(photo.width - width + 1)), int(rng.integers(photo.height - height + 1))
    return photo.crop((left, top, left + int(width), top + int(height)))


if __name__ == "__main__":
    run_script(main)
