"""Count the words that a recogniser should prefer where a picture leaves doubt: lists of words, and labels of crops.

    python examples/reader/preferred_words.py words/*.txt --crops real/*-train.lmdb -o preferred.txt

A word of a list counts once for each list that it is in. Labels say better what signs say, so each counts five times.
Letters and digits in no order are among them, since plates and serial numbers would otherwise be read as words.
``dptr export RUN --to safetensors --words preferred.txt`` puts the counts into the model's file.
"""

from __future__ import annotations

import argparse
import random
import string
from collections import Counter
from pathlib import Path

from dptr.cache.errors import run_script
from dptr.cache.word_images.dataset import WordImages

LABELS_COUNT = 5
WITHOUT_ORDER = 60_000


def main() -> None:
    """Parse, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", type=Path, nargs="+", help="a word a line")
    parser.add_argument("--crops", type=Path, nargs="*", default=[], help="labelled crops that training saw")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    counts = count(arguments.lists, arguments.crops)
    lines = [f"{word}\t{counts[word]}\n" for word in sorted(counts)]
    arguments.out.write_text("".join(lines), encoding="utf-8")
    print(f"{len(counts):,} words in {arguments.out}")


def count(lists: list[Path], crops: list[Path]) -> Counter[str]:
    """Return how often each word counts, upper and lower case taken together."""
    counts: Counter[str] = Counter()
    for path in lists:
        counts.update({word.lower() for word in path.read_text(encoding="utf-8").splitlines() if word})
    for sample in WordImages.open_as_written(crops).samples if crops else ():
        counts[sample.label.lower()] += LABELS_COUNT
    rng = random.Random(0)
    for _ in range(WITHOUT_ORDER):
        counts["".join(rng.choices(string.ascii_lowercase + string.digits, k=rng.randint(3, 9)))] += 1
    return counts


if __name__ == "__main__":
    run_script(main)
