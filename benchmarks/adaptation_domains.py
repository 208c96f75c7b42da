"""Cut the domains of `adaptation.py` from labelled crops: few labels, much text, unlabelled crops, crops to test on.

    python benchmarks/adaptation_domains.py STR FONTS -o OUT [--seed 0]

STR holds the folders ``sroie_lines``, ``plates_ar``, ``ic15_train`` and ``iiit5k_train``. FONTS has font files that
drew no crop of training, for number plates that `examples/number_plates.py` paints and photographs. Only crops that
`examples/reader/crops.py` holds out of the bundled recogniser's training are labelled, validated or tested on, and
ICDAR 2015 is tested on those alone that version 0.1 held out, too. The seed draws the labelled crops; those of one
receipt, photo or plate stay on one side. Writes OUT/DOMAIN-SEED with ``crops``, ``more``, ``text.txt``, ``validation``
and ``test``.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dptr.cache.errors import run_script
from dptr.pipeline.rendering.fonts import Font

_EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path[:0] = [str(_EXAMPLES / "reader"), str(_EXAMPLES)]
import number_plates  # type: ignore[import-not-found]  # noqa: E402
from crops import side_of  # type: ignore[import-not-found]  # noqa: E402

Row = tuple[str, str]
#: Lines of a receipt that are labelled, and that are tested on.
_LABELLED_LINES, _TEST_LINES = 10, 5
#: Numbers in the text of plates; painted plates that are tested on, validated on and unlabelled.
_NUMBERS, _PAINTED = 5000, 400
#: A for a letter, 0 for a digit.
_ARGENTINE = ("AA000AA", "AAA000", "AAA000", "A000AAA")
_AMERICAN = ("AAA0000", "0AAA000", "AA00000", "00A0000", "000AAA0")


@dataclass
class Domain:
    """Rows ``(file, label)`` of one folder, by what they are for."""

    folder: Path
    crops: list[Row] = field(default_factory=list)
    more: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)
    test: list[Row] = field(default_factory=list)
    text: list[str] = field(default_factory=list)

    def write(self, out: Path) -> None:
        """Copy the crops; those of ``more`` without their labels."""
        for name in ("crops", "more", "validation", "test"):
            rows: list[Row] = getattr(self, name)
            if not rows:
                continue
            (out / name).mkdir(parents=True)
            for file, _ in rows:
                shutil.copyfile(self.folder / file, out / name / Path(file).name)
            if name != "more":
                labels = "".join(f"{Path(file).name}\t{label}\n" for file, label in rows)
                (out / name / "labels.tsv").write_text(labels, encoding="utf-8")
        (out / "text.txt").write_text("".join(f"{line}\n" for line in self.text), encoding="utf-8")
        counts = ", ".join(f"{name} {len(getattr(self, name)):,}" for name in ("crops", "more", "validation", "test"))
        print(f"{out}: {counts}, text {len(self.text):,}")


def main() -> None:
    """Parse, cut."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crops", type=Path)
    parser.add_argument("fonts", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    made = {
        "receipts": receipts(options.crops / "sroie_lines", options.seed),
        "plates20": plates(options.crops / "plates_ar", 20, options.seed),
        "plates50": plates(options.crops / "plates_ar", 50, options.seed),
        "ic15": street(options.crops / "ic15_train", options.seed),
        "iiit5k": words(options.crops / "iiit5k_train", options.seed),
        "painted": painted(options.fonts, options.out / "painted", options.seed),
    }
    for name, domain in made.items():
        domain.write(options.out / f"{name}-{options.seed}")


def sides_of(folder: Path) -> dict[str, list[Row]]:
    """Return the rows of a folder by the side that the bundled recogniser's training has them on."""
    sides: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for row in (folder / "labels.tsv").read_text(encoding="utf-8").splitlines():
        file, label = row.split("\t", 1)
        sides[side_of(folder.name, row)].append((file, label))
    return sides


def receipts(folder: Path, seed: int) -> Domain:
    """100 lines of ten held-out receipts; 300 of the sixty test receipts."""
    sides, rng = sides_of(folder), random.Random(seed)
    labelled = rng.sample(sorted({_receipt(row) for row in sides["validation"]}), 10)
    crops = _some_of_each(sides["validation"], labelled, _LABELLED_LINES, rng)
    rest = [row for row in sides["validation"] if row not in crops]
    test = _some_of_each(sides["test"], sorted({_receipt(row) for row in sides["test"]}), _TEST_LINES, random.Random(0))
    text = [label for _, label in (*sides["train"], *sides["validation"])]
    return Domain(folder, crops, rest, [row for row in rest if _receipt(row) not in labelled], test, text)


def plates(folder: Path, count: int, seed: int) -> Domain:
    """Some of the 114 held-out plates; all others are the test."""
    sides, rng = sides_of(folder), random.Random(seed)
    held_out = sorted([*sides["validation"], *sides["test"]])
    numbers = sorted({label for _, label in held_out})
    rng.shuffle(numbers)
    chosen: set[str] = set()
    for number in numbers:
        if sum(label in chosen for _, label in held_out) < count:
            chosen.add(number)
    crops, test = ([row for row in held_out if (row[1] in chosen) == is_labelled] for is_labelled in (True, False))
    return Domain(folder, crops, test=test, text=_numbers(_ARGENTINE, {label for _, label in held_out}))


def street(folder: Path, seed: int) -> Domain:
    """100 words of half the held-out photos; those of the test's photos that no version was trained on."""
    sides, rng = sides_of(folder), random.Random(seed)
    held_out = sides["validation"]
    photos = sorted({_photo(row) for row in held_out})
    labelled = set(rng.sample(photos, len(photos) // 2))
    crops = rng.sample([row for row in held_out if _photo(row) in labelled], 100)
    rest = [row for row in held_out if row not in crops]
    validation = [row for row in rest if _photo(row) not in labelled and _held_out_before(row[0])]
    test = [row for row in sides["test"] if _held_out_before(row[0])]
    return Domain(folder, crops, rest, validation, test, [label for _, label in (*sides["train"], *held_out)])


def words(folder: Path, seed: int) -> Domain:
    """100 words of held-out photos; all test words, of which version 0.1 had seen most."""
    sides, rng = sides_of(folder), random.Random(seed)
    text = [label for _, label in (*sides["train"], *sides["validation"])]
    return Domain(folder, rng.sample(sides["validation"], 100), test=sides["test"], text=text)


def painted(fonts: Path, out: Path, seed: int) -> Domain:
    """Painted number plates: 100 labelled, and others, whose numbers the text does not have."""
    numbers = _numbers(_AMERICAN, set())
    faces = [Font(path) for path in sorted(fonts.glob("*.ttf"))]
    domain = Domain(out)
    for place, name in enumerate(("crops", "more", "validation", "test"), start=1):
        count, drawn = (100, seed) if name == "crops" else (_PAINTED, 0)
        folder = out / f"{name}-{drawn}"
        rows = []
        for index, number in enumerate(_numbers(_AMERICAN, set(numbers), seed=1000 * place + drawn)[:count]):
            file = f"{folder.name}/{index:03d}.jpg"
            if not (out / file).is_file():
                folder.mkdir(parents=True, exist_ok=True)
                _photograph(number, faces, np.random.default_rng((place, drawn, index)), out / file)
            rows.append((file, number))
        setattr(domain, name, rows)
    domain.text = numbers
    return domain


def _photograph(number: str, fonts: Sequence[Font], rng: np.random.Generator, out: Path) -> None:
    """Write a picture of a plate."""
    face = fonts[int(rng.integers(len(fonts)))]
    kind = str(rng.choice(list(number_plates.KINDS)))
    plate = number_plates.paint(number, kind, (face, face), rng)
    number_plates.photograph(plate, rng, None).save(out, "JPEG", quality=int(rng.integers(50, 95)))


def _numbers(formats: Sequence[str], without: set[str], seed: int = 0) -> list[str]:
    """Return random numbers of some formats, none of those named."""
    rng = random.Random(seed)
    found: list[str] = []
    while len(found) < _NUMBERS:
        number = "".join(
            rng.choice(string.ascii_uppercase if place == "A" else string.digits) for place in rng.choice(formats)
        )
        if number not in without:
            found.append(number)
    return found


def _some_of_each(rows: Sequence[Row], receipts: Sequence[str], count: int, rng: random.Random) -> list[Row]:
    """Return some lines of each receipt."""
    lines = [[row for row in rows if _receipt(row) == name] for name in receipts]
    return [row for each in lines for row in sorted(rng.sample(each, count))]


def _receipt(row: Row) -> str:
    return row[0].split("_")[0]


def _photo(row: Row) -> int:
    """Return the block of 64 numbers that a crop of ICDAR 2015 is in; photos stay in one."""
    return int(row[0].removeprefix("word_").split(".")[0]) // 64


def _held_out_before(file: str) -> bool:
    """Return whether version 0.1 held a crop out: a fifth, by the file's name."""
    return int.from_bytes(hashlib.sha256(file.encode()).digest()[:8], "big") % 5 == 0


if __name__ == "__main__":
    run_script(main)
