"""Write the lexicon of the bundled recogniser, with counts.

    python examples/reader/preferred_words.py words/common.txt words/dictionary.txt -o preferred.txt

A word counts 1, and more by the square root of its frequency in wordfreq's English (per million words), so that common
words win over rare ones without excluding them. Labels of crops are excluded, as they would bias tests on the same
data. Random letter strings are included, for abbreviations and names. No string has a digit, so that predictions with
digits, such as serial numbers, are not changed. ``dptr export RUN --to safetensors --lexicon preferred.txt`` stores the
counts in the model's file.
"""

from __future__ import annotations

import argparse
import random
import string
from collections import Counter
from pathlib import Path

from dptr.cache.errors import UserError, run_script

WITHOUT_ORDER = 60_000


def main() -> None:
    """Parse arguments, count, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", type=Path, nargs="+", help="a word a line")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    counts = count(arguments.lists)
    lines = [f"{word}\t{counts[word]}\n" for word in sorted(counts)]
    arguments.out.write_text("".join(lines), encoding="utf-8")
    print(f"{len(counts):,} words in {arguments.out}")


def count(lists: list[Path]) -> Counter[str]:
    """Return how much each word counts, upper and lower case taken together.

    Raises:
        UserError: wordfreq is not installed.
    """
    try:
        from wordfreq import zipf_frequency
    except ModuleNotFoundError as error:
        raise UserError("frequencies of words come from wordfreq", "pip install wordfreq") from error
    words = {word.lower() for path in lists for word in path.read_text(encoding="utf-8").splitlines() if word}
    # Zipf's scale is the logarithm of occurrences in a billion words.
    counts = Counter({word: 1 + round(10 ** ((zipf_frequency(word, "en") - 3) / 2)) for word in words})
    rng = random.Random(0)
    for _ in range(WITHOUT_ORDER):
        counts["".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 9)))] += 1
    return counts


if __name__ == "__main__":
    run_script(main)
