"""Part folders of real labelled crops: a fixed fifth, by the file's name, is never trained on.

    python examples/reader/crops.py iiit5k_train ic15_train -o real/

``real/NAME-train.lmdb`` and ``real/NAME-validation.lmdb`` come out. The rule is a hash of the name alone, so that
anyone with the same files can tell which side each is on; ``benchmarks/peers.py --fold 0/5`` knows it, too.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from dptr.cache.errors import run_script
from dptr.cache.word_images.writer import write_word_images


def main() -> None:
    """Parse, part, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="each with labels.tsv: file, tab, text")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for folder in arguments.folders:
        lines = (folder / "labels.tsv").read_text(encoding="utf-8").splitlines()
        rows = [line.split("\t", 1) for line in lines]
        for side in ("train", "validation"):
            out = arguments.out / f"{folder.name}-{side}.lmdb"
            chosen = [row for row in rows if is_validation(row[0]) == (side == "validation")]
            with write_word_images(out) as writer:
                for name, label in chosen:
                    writer.write((folder / name).read_bytes(), label)
            print(f"{len(chosen):,} crops in {out}")


def is_validation(name: str) -> bool:
    """Return whether the crop of that file name is in the fifth that training never sees."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 5 == 0


if __name__ == "__main__":
    run_script(main)
