"""Give labels that are in capitals the case that their pictures show, as a recogniser reads it.

    python examples/reader/recase.py real/sroie_lines-train.lmdb -o real/receipts.lmdb --model first.safetensors

Some data sets write every label in capitals. Training on them unchanged teaches that lower-case letters are capitals.
The label is aligned with a prediction; matching letters take the prediction's case, and others the case of the rest of
the word. Crops whose prediction differs too much are rejected.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rapidfuzz.distance import Levenshtein

from dptr.cache.crops.dataset import WordImages, write_word_images
from dptr.cache.errors import run_script
from dptr.trainer.model.model_file import BUNDLED
from dptr.trainer.read import load

_BATCH = 256


def main() -> None:
    """Parse arguments, read, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crops", type=Path, help="labelled crops of any form")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="run or model file that reads both cases")
    parser.add_argument("--most", type=float, default=0.34, help="greatest share of a label that may be misread")
    arguments = parser.parse_args()
    images = WordImages.open_as_written([arguments.crops])
    reader = load(arguments.model, lexicon="none")
    kept = 0
    with write_word_images(arguments.out) as writer:
        for start in range(0, len(images), _BATCH):
            rows = range(start, min(start + _BATCH, len(images)))
            predictions = reader.read([images.image(row) for row in rows])
            for row, prediction in zip(rows, predictions, strict=True):
                label = recased(images.samples[row].label, prediction.text, arguments.most)
                if label is not None:
                    kept += 1
                    writer.write(encoded(images, row), label)
    print(f"{kept:,} of {len(images):,} crops in {arguments.out}")


def recased(label: str, prediction: str, most: float) -> str | None:
    """Return ``label`` in the case of ``prediction``; None where more than the share ``most`` of it is misread."""
    folded, read = label.upper(), prediction.upper()
    if Levenshtein.distance(folded.replace(" ", ""), read.replace(" ", "")) > most * max(1, len(folded)):
        return None
    case: list[bool | None] = [None] * len(label)
    for block in Levenshtein.opcodes(folded, read):
        if block.tag == "equal":
            for place in range(block.src_end - block.src_start):
                seen = prediction[block.dest_start + place]
                case[block.src_start + place] = seen.islower() if seen.isalpha() else None
    words, begin = [], 0
    for word in label.split(" "):
        words.append(_in_case(word, case[begin : begin + len(word)]))
        begin += len(word) + 1
    return " ".join(words)


def _in_case(word: str, case: list[bool | None]) -> str:
    """Write a word by what is known of its letters' case; of the others, those behind the first agree with most."""
    known = [small for small in case[1:] if small is not None] or [small for small in case if small is not None]
    rest = sum(known) * 2 > len(known)
    written = []
    for place, (letter, small) in enumerate(zip(word, case, strict=True)):
        lower = small if small is not None else rest and place > 0
        written.append(letter.lower() if lower else letter)
    return "".join(written)


def encoded(images: WordImages, row: int) -> bytes:
    """Return a crop's file as it is stored."""
    sample = images.samples[row]
    return images.sources[sample.source].read(sample.key)


if __name__ == "__main__":
    run_script(main)
