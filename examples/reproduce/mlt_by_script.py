"""Part MLT17's or MLT19's cropped words by script: an LMDB of labelled crops for each.

    python examples/reproduce/mlt_by_script.py data/mlt/MLT19 mlt19

``data/mlt/MLT19`` holds the pictures and ``gt.txt`` of task 2. ``dptr finetune`` and ``dptr evaluate`` take the LMDBs.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from check_data import mlt_words

from dptr.cache.crops.dataset import WordImageWriter, write_word_images
from dptr.cache.errors import UserError, run_script


def main() -> None:
    """Parse, write, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with pictures and gt.txt")
    parser.add_argument("out", type=Path, help="folder for SCRIPT.lmdb")
    arguments = parser.parse_args()
    if not (arguments.data / "gt.txt").is_file():
        raise UserError(f"there is no gt.txt in {arguments.data}", "Put the ground truth of task 2 beside its pictures")
    arguments.out.mkdir(parents=True, exist_ok=True)
    writers: dict[str, WordImageWriter] = {}
    counts: dict[str, int] = {}
    with ExitStack() as stack:
        for name, script, text in mlt_words(arguments.data):
            if script not in writers:
                writers[script] = stack.enter_context(write_word_images(arguments.out / f"{script}.lmdb"))
            writers[script].write((arguments.data / name).read_bytes(), text)
            counts[script] = counts.get(script, 0) + 1
    for script, count in sorted(counts.items()):
        print(f"{script}: {count:,} words in {arguments.out / script}.lmdb")


if __name__ == "__main__":
    run_script(main)
