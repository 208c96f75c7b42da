"""How often a labelled crop finds its own prompt among those of all crops given: a CLIP's reading without a decoder.

    python benchmarks/clip_retrieval.py --clip my_clip/run/clip my_clip/ru/unseen.parquet my_clip/th/unseen.parquet

One line a folder or file of crops, with the 95 % interval of Wilson. Each word counts once, with the first of its
crops; case counts where the CLIP's tokenizer knows it.

Smallest size: CROPS --prompts 20
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from bundled_clip import image_vectors, prompt_vectors
from judged import at_least

from dptr.cache.charset import Charset
from dptr.cache.errors import run_script
from dptr.cache.normalization import Normalization
from dptr.cache.word_images.dataset import WordImages
from dptr.pipeline.clip.loading import ImageEncoder, load_clip
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.text.templates import Template
from dptr.trainer.metrics import wilson


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crops", type=Path, nargs="+", help="labelled crops that the CLIP never saw")
    parser.add_argument("--clip", default="tiny", help="`tiny`, a directory or a hub id")
    parser.add_argument("--charset", default="94", help="of the labels")
    parser.add_argument("--prompts", type=at_least(1), default=1000, help="words of each")
    arguments = parser.parse_args()
    clip = load_clip(arguments.clip)
    texts, images = TextEncoder(clip, Template()), ImageEncoder(clip)
    print(f"{'':32}{'words':>7}{'first':>8}{'95 %':>16}{'of five':>9}")
    for path in arguments.crops:
        charset = Normalization().charset(Charset.named(arguments.charset))
        opened = WordImages.open([path], charset, Normalization())
        first = {sample.label: row for row, sample in reversed(list(enumerate(opened.samples)))}
        rows = sorted(first.values())[: arguments.prompts]
        labels = [opened.samples[row].label for row in rows]
        similarities = image_vectors(images, [opened.image(row) for row in rows]) @ prompt_vectors(texts, labels).T
        own = np.arange(len(rows))[:, None]
        best = np.argsort(-similarities, 1)[:, :5]
        right = int((best[:, :1] == own).sum())
        low, high = wilson(right, len(rows))
        among_five = (best == own).any(1).mean()
        name, interval = f"{path.parent.name}/{path.name}", f"{low:.1%}-{high:.1%}"
        print(f"{name:32}{len(rows):7,}{right / len(rows):8.1%}{interval:>16}{among_five:9.1%}")


if __name__ == "__main__":
    run_script(main)
