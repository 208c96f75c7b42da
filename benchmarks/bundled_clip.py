"""How well a CLIP matches rendered words with their prompts: unseen words, in fonts that training never showed.

The bundled CLIP never saw a word that :func:`dptr.pipeline.clip.bundled.is_held_out` names, nor the fonts of the
``demo`` extra, which are the ones used here. So anyone can repeat its model card's figures:

    python benchmarks/bundled_clip.py /usr/share/dict/words --photos photos/ --figure similarity.svg

The figure is that of the paper's introduction: the text of a word against crops with that word, crops with other words
and photos without text.

Smallest size: WORDS --prompts 20 --photos PHOTOS --figure FIGURE
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
from judged import at_least
from numpy.typing import NDArray
from PIL import Image

from dptr.cache.errors import run_script
from dptr.cache.pictures import read_picture
from dptr.pipeline.clip.bundled import is_held_out
from dptr.pipeline.clip.loading import ImageEncoder, load_clip
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.rendering.crop import render_one
from dptr.pipeline.rendering.demo_data import packaged_photos
from dptr.pipeline.rendering.fonts import packaged_fonts
from dptr.pipeline.rendering.style import RenderStyle
from dptr.pipeline.rendering.word_lists import photo_paths
from dptr.pipeline.text.templates import Template

_WORD = re.compile("[a-z]{3,12}")
_BATCH = 100
_WIDTH, _ROW, _BINS = 720, 110, 80
_COLOURS = ("#2f6f4f", "#b4642d", "#5b6a87")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="tiny", help="`tiny`, a directory or a hub id")
    parser.add_argument("words", type=Path, help="a word list, such as /usr/share/dict/words")
    parser.add_argument("--prompts", type=at_least(1), default=1000, help="words in all")
    parser.add_argument("--style", default="natural", help="clean, natural, hard, or a number from 0 to 1")
    parser.add_argument("--photos", type=Path, help="photos without text; by default those of scikit-image")
    parser.add_argument("--figure", type=Path, help="where to draw the similarities, as SVG")
    parser.add_argument("--seed", type=at_least(0), default=0)
    arguments = parser.parse_args()
    clip = load_clip(arguments.clip)
    rng = np.random.default_rng(arguments.seed)
    words = held_out_words(arguments.words, arguments.prompts, rng)
    images = ImageEncoder(clip)
    texts = prompt_vectors(TextEncoder(clip, Template()), words)
    style, fonts = RenderStyle.named(arguments.style), packaged_fonts()
    crops = image_vectors(images, [render_one(word, fonts.choose(word, rng), rng, style) for word in words])
    similarities = crops @ texts.T
    top1 = similarities.argmax(1) == np.arange(len(words))
    top5 = (np.argsort(-similarities, 1)[:, :5] == np.arange(len(words))[:, None]).any(1)
    print(f"{len(words)} unseen words, unseen fonts, style {arguments.style}")
    print(f"the right prompt first: {top1.mean():.1%}, among the first five: {top5.mean():.1%}")
    for least, most in ((3, 5), (6, 8), (9, 12)):
        some = np.array([least <= len(word) <= most for word in words])
        if some.any():
            print(f"  of {least} to {most} letters: {top1[some].mean():.1%} of {some.sum()}")
    photos = photo_paths(arguments.photos) if arguments.photos else packaged_photos()
    others = image_vectors(images, [rectangle(photos[i % len(photos)], rng) for i in range(len(words))]) @ texts.T
    groups = {
        "crops with that word": np.diag(similarities),
        "crops with other words": similarities[~np.eye(len(words), dtype=bool)],
        "photos without text": others.ravel(),
    }
    for name, values in groups.items():
        low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
        print(f"text against {name}: median {middle:.3f}, nine in ten from {low:.3f} to {high:.3f}")
    if arguments.figure:
        arguments.figure.write_text(draw(groups), encoding="utf-8")


def held_out_words(path: Path, count: int, rng: np.random.Generator) -> list[str]:
    """Draw ``count`` different words that the bundled CLIP never saw."""
    words = sorted(
        {word for word in path.read_text(encoding="utf-8").split() if _WORD.fullmatch(word) and is_held_out(word)}
    )
    if len(words) < count:
        raise SystemExit(f"only {len(words)} of these words were held out, {count} asked for: give a longer list")
    return [words[i] for i in rng.permutation(len(words))[:count]]


def prompt_vectors(tower: TextEncoder, words: list[str]) -> NDArray[np.float32]:
    """Return the pooled vectors of the words' prompts, of length one: (words, dim)."""
    return unit(tower.encode(tower.tokenize([Template().prompt(word) for word in words])).pooled)


def image_vectors(tower: ImageEncoder, images: list[Image.Image]) -> NDArray[np.float32]:
    """Return the pooled vectors of pictures, of length one: (images, dim)."""
    batches = (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))
    return unit(np.concatenate([tower.encode(np.stack([tower.preprocess(i) for i in batch]))[1] for batch in batches]))


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def rectangle(path: Path, rng: np.random.Generator) -> Image.Image:
    """Cut a random rectangle, from a fifth of each side up to the whole photo."""
    photo = read_picture(path)
    width, height = (np.array(photo.size) * rng.uniform(0.2, 1, 2)).astype(int)
    left, top = int(rng.integers(photo.width - width + 1)), int(rng.integers(photo.height - height + 1))
    return photo.crop((left, top, left + int(width), top + int(height)))


def draw(groups: dict[str, NDArray[np.float32]]) -> str:
    """Draw one histogram a group, over a common axis of cosine similarity, as SVG."""
    low = min(float(values.min()) for values in groups.values())
    edges = np.linspace(np.floor(low * 10) / 10, 1, _BINS + 1)
    height = _ROW * len(groups) + 50

    def across(value: float) -> float:
        return float(20 + (value - edges[0]) / (edges[-1] - edges[0]) * (_WIDTH - 40))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
    ]
    for row, ((name, values), colour) in enumerate(zip(groups.items(), _COLOURS, strict=True)):
        counts = np.histogram(values, edges)[0]
        floor = _ROW * (row + 1)
        heights = floor - counts / counts.max() * (_ROW - 40)
        steps = [f"{across(x):.1f},{y:.1f}" for i, y in enumerate(heights) for x in edges[i : i + 2]]
        points = f"{across(edges[0]):.1f},{floor} {' '.join(steps)} {across(edges[-1]):.1f},{floor}"
        middle = across(float(np.median(values)))
        parts += [
            f'<polygon points="{points}" fill="{colour}" fill-opacity="0.75"/>',
            f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{floor - _ROW + 34}" y2="{floor}" stroke="{colour}"/>',
            f'<text x="20" y="{floor - _ROW + 28}" font-size="15" fill="{colour}">{name}'
            f" (median {np.median(values):.2f})</text>",
        ]
    floor = _ROW * len(groups)
    for tick in np.arange(np.ceil(edges[0] * 5) / 5, 1.01, 0.2):
        parts.append(
            f'<text x="{across(tick):.1f}" y="{floor + 18}" font-size="12" text-anchor="middle">{tick:.1f}</text>'
        )
    parts.append(
        f'<text x="{_WIDTH / 2}" y="{floor + 40}" font-size="13" text-anchor="middle">'
        "cosine similarity with the text of a word</text></svg>"
    )
    return "\n".join(parts)


if __name__ == "__main__":
    run_script(main)
