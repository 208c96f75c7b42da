"""What words add to a recogniser: the same pictures read without and with each of several lists of words.

    python benchmarks/preferred_words.py --data crops/ others/ --words lists.txt lists_and_labels.txt --out out.parquet

The first arm reads without words; each of the others with a file of words as ``examples/reader/preferred_words.py``
writes them. Differences are paired by picture, with the 95 % interval of a bootstrap over pictures. ``--out`` keeps the
rows as JSON Lines.

Smallest size: --data CROPS --words FEW_WORDS
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judged import write_rows
from numpy.typing import NDArray
from scipy import stats

from dptr.cache.charset import Charset
from dptr.cache.errors import UserError, run_script
from dptr.cache.word_images.dataset import WordImages
from dptr.trainer.evaluate import read_word_images
from dptr.trainer.metrics import field_score
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
    print("| data | words of | accuracy, % | points | over pictures |\n| --- | --- | --- | --- | --- |")
    without = {each["test"]: np.array(each["right"], float) for each in rows if each["arm"] == _WITHOUT}
    for each in rows:
        more = np.array(each["right"], float) - without[each["test"]]
        print(f"| {each['test']} | {each['arm']} | {100 * np.mean(each['right']):.2f} | {_difference(more)} |")


def _difference(more: NDArray[np.float64]) -> str:
    if not np.ptp(more):
        return f"{100 * more.mean():+.2f} | "
    interval = stats.bootstrap((more,), np.mean, method="percentile", rng=np.random.default_rng(0), batch=100)
    low, high = interval.confidence_interval
    return f"{100 * more.mean():+.2f} | {100 * low:+.2f} to {100 * high:+.2f}"


def row(arm: str, recognizer: Recognizer, path: Path, protocol: str) -> dict[str, Any]:
    """Read one data set: which of its pictures count under the protocol, and which of those were read right."""
    read = read_word_images(recognizer, WordImages.open_as_written([path]), torch.device("cpu"))
    charset = Charset.named(protocol)
    texts = [reading.text for reading in read.readings]
    scored = [field_score([truth], [text], charset).score for truth, text in zip(read.truths, texts, strict=True)]
    counted = [(key, one.accuracy == 1) for key, one in zip(read.keys, scored, strict=True) if one is not None]
    if not counted:
        raise UserError(f"no word of {path} counts with {protocol} characters", "Name others")
    images, right = map(list, zip(*counted, strict=True))
    return {"arm": arm, "test": path.stem, "protocol": protocol, "images": images, "right": right}


if __name__ == "__main__":
    run_script(main)
