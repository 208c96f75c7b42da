"""Split folders of real labelled crops into train, validation and test, never parting crops of one photo.

    python examples/reader/crops.py iiit5k_train ic15_train sroie_lines plates_ar -o real/

Writes ``real/NAME-train.lmdb``, ``NAME-validation.lmdb`` and ``NAME-test.lmdb``. A hash of the group's name decides the
side, so anyone with the same files gets the same split. Training sees train, every choice (checkpoints, weights,
thresholds) is made on validation, and test is read once, for the model card.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from dptr.cache.crops.dataset import write_word_images
from dptr.cache.errors import run_script

Side = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Split:
    """Split of one folder.

    Attributes:
        group: finds the group in ``file<TAB>label``; its parentheses are joined to the group's name.
        block: group numbers that count as one group together.
        test, validation: percent of the groups.
    """

    group: str
    test: int
    validation: int
    block: int = 1


#: Folder -> its split. Files of IIIT5K are PHOTO_WORD, those of receipts RECEIPT_LINE. ICDAR 2015 numbers its crops
#: photo by photo (about 4.5 a photo) without naming the photo, so blocks of 64 numbers stay together and only photos at
#: a block's two ends can be parted. A plate may have been photographed twice, so its number is its group.
SPLITS = {
    "iiit5k_train": Split(r"^(\d+)_", test=15, validation=10),
    "ic15_train": Split(r"^word_(\d+)", test=15, validation=10, block=64),
    "sroie_lines": Split(r"^(\d+)_", test=32, validation=8),
    "plates_ar": Split(r"\t(.+)$", test=65, validation=10),
    "svt_train": Split(r"^(.+)\t", test=0, validation=0),
}
#: Of folders that are not listed: each file is a group.
OTHER = Split(r"^(.+)\t", test=15, validation=10)


def main() -> None:
    """Parse arguments, split, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="each with labels.tsv: file, tab, text")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for folder in arguments.folders:
        rows = (folder / "labels.tsv").read_text(encoding="utf-8").splitlines()
        for side in get_args(Side):
            chosen = [row.split("\t", 1) for row in rows if side_of(folder.name, row) == side]
            if not chosen:
                continue
            out = arguments.out / f"{folder.name}-{side}.lmdb"
            with write_word_images(out) as writer:
                for name, label in chosen:
                    writer.write((folder / name).read_bytes(), label)
            print(f"{len(chosen):,} crops in {out}")


def side_of(folder: str, row: str) -> Side:
    """Return the side of a row ``file<TAB>label`` of a folder called ``folder``."""
    split = SPLITS.get(folder, OTHER)
    found = re.search(split.group, row)
    group = "".join(found.groups()) if found else row
    if split.block > 1:
        group = str(int(group) // split.block)
    digest = hashlib.sha256(f"{folder}/{group}".encode()).digest()
    percent = int.from_bytes(digest[:8], "big") % 100
    if percent < split.test:
        return "test"
    return "validation" if percent < split.test + split.validation else "train"


if __name__ == "__main__":
    run_script(main)
