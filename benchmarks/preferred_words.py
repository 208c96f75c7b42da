"""What words add to a recogniser: the same pictures read without and with each of several lists of words.

    python benchmarks/preferred_words.py --data crops/ others/ --words lists.txt lists_and_labels.txt --out out.parquet

The first arm reads without words; each of the others with a file of words as ``examples/reader/preferred_words.py``
writes them. Differences are paired by picture. ``--out`` keeps the rows as those of an ablation, which
``benchmarks/evidence.py`` takes.

Smallest size: --data CROPS --words FEW_WORDS
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from dptr.cache.errors import run_script
from dptr.cache.word_images.dataset import WordImages
from dptr.trainer.ablation.comparison import compare
from dptr.trainer.ablation.crops import fingerprint
from dptr.trainer.ablation.rows import Row, write_rows
from dptr.trainer.ablation.table import as_text
from dptr.trainer.ablation.trial import judged
from dptr.trainer.evaluate import read_word_images
from dptr.trainer.model.model_file import BUNDLED
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.read import load

_WITHOUT = "without words"


def main() -> None:
    """Parse, read, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="labelled crops, in any form dptr reads")
    parser.add_argument("--words", type=Path, nargs="+", required=True, help="files of words, each an arm by its name")
    parser.add_argument("--model", type=Path, default=BUNDLED, help="a run or file with a CTC decoder")
    parser.add_argument("--protocol", default="36", help="characters that count")
    parser.add_argument("-o", "--out", type=Path, help="keep the rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for arm, words in {_WITHOUT: "none", **{path.stem: str(path) for path in arguments.words}}.items():
        recognizer = load(arguments.model, words=words).recognizer
        rows += [row(arm, recognizer, path, arguments.protocol) for path in arguments.data]
    if arguments.out:
        write_rows(arguments.out, rows)
    print(as_text(compare(rows)))


def row(arm: str, recognizer: Recognizer, path: Path, protocol: str) -> Row:
    """Read one data set."""
    images = WordImages.open_as_written([path])
    read = read_word_images(recognizer, images, torch.device("cpu"))
    untrained: dict[str, Any] = dict.fromkeys(("seed", "steps", "pretrain_steps", "crops"), 0)
    return {
        **untrained,
        **dict.fromkeys(("seconds", "pretrain_seconds"), 0.0),
        "ablation": "preferred words",
        "arm": arm,
        "base": arm == _WITHOUT,
        "start": "none",
        "run": arm,
        "against": "" if arm == _WITHOUT else _WITHOUT,
        "protocol": protocol,
        "parameters": sum(parameter.numel() for parameter in recognizer.parameters()),
        "test": path.stem,
        "test_sha256": fingerprint(images),
        **judged(read, path.stem, protocol),
    }


if __name__ == "__main__":
    run_script(main)
