"""Compare Tesseract, RapidOCR (PP-OCRv4, PP-OCRv6) and dptr's recognisers on labelled crops: accuracy, time, size.

    python benchmarks/peers.py --data crops/ more_crops/ --model RUN model.onnx

dptr needs neither peer. One that is missing is a line of the table that says how to install it. RapidOCR may live in an
environment of its own: `--rapidocr-python other/bin/python`; several are compared. How each is run and timed:
`peer_readers.py`.

Protocol, the field's for 36 characters: white space is removed, the label decomposed to ASCII (NFKD), labels longer
than 25 characters are left out, then everything but letters and digits goes and case is folded; labels that are empty
then are left out. Predictions are compared alike. The interval is Wilson's, 95 %. 1-NED is one less the mean edit
distance, each divided by the longer of the two texts.

dptr reads each crop as `dptr read` does, tall and unsure ones in several views; with `--single-view` once, as published
tables have it. `--lexicon none` leaves its lexicon out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common import at_least
from peer_readers import (
    ONE_THREAD,
    NotInstalled,
    Predictions,
    Reader,
    read_with_dptr,
    read_with_rapidocr,
    read_with_tesseract,
)
from PIL import Image

from dptr.cache.crops.form import Rejected
from dptr.cache.crops.sources import find_sources
from dptr.cache.errors import UserError, run_script
from dptr.cache.pictures import UnusablePicture, decode
from dptr.cache.text.charset import Charset
from dptr.trainer.metrics import LONGEST, score, to_ascii, wilson
from dptr.trainer.model.model_file import BUNDLED

_CHARSET = Charset.named("36")
#: Groups of label lengths, by their longest.
_LENGTHS = {"1-3": 3, "4-6": 6, "7-9": 9, "10-25": 25}


@dataclass(frozen=True)
class Crops:
    """Labelled crops of one data set that the protocol keeps: pixels, RGB, and labels in the 36 characters."""

    name: str
    keys: list[str] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Row:
    """A line of the table: one recogniser on one data set. ``predictions`` is what it read, or why it could not."""

    crops: Crops
    reader: str
    predictions: Predictions | str

    @property
    def texts(self) -> list[str]:
        """Return a prediction, in the protocol's characters."""
        texts = [] if isinstance(self.predictions, str) else self.predictions.texts
        return [_CHARSET.project(to_ascii(text)) for text in texts]

    def figures(self) -> dict[str, Any]:
        """Return all figures as plain values; of a recogniser that is missing, why."""
        named: dict[str, Any] = {"data": self.crops.name, "reader": self.reader, "crops": len(self.crops.labels)}
        if isinstance(self.predictions, str):
            return {**named, "missing": self.predictions}
        texts = self.texts
        hits = [text == label for text, label in zip(texts, self.crops.labels, strict=True)]
        return {
            **named,
            "accuracy": sum(hits) / len(hits),
            "interval": wilson(sum(hits), len(hits)),
            "one_minus_ned": score(self.crops.labels, texts).one_minus_ned,
            "milliseconds": self.predictions.milliseconds,
            "milliseconds_batched": self.predictions.batched,
            "megabytes": self.predictions.megabytes,
            "groups": grouped(self.crops, hits),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="labelled crops, in any form dptr reads")
    parser.add_argument(
        "--model", type=Path, nargs="*", default=[BUNDLED], help="runs or exported models instead of the bundled one"
    )
    parser.add_argument("--single-view", action="store_true", help="let dptr read each crop once")
    parser.add_argument("--lexicon", help="words for dptr in place of the model's own, or none")
    parser.add_argument("--limit", type=at_least(1), help="only the first so many crops of each data set")
    parser.add_argument("--tesseract", default="tesseract", help="its program")
    parser.add_argument(
        "--rapidocr-python", nargs="*", default=[sys.executable], help="the Python that RapidOCR is installed for"
    )
    parser.add_argument(
        "--predictions", type=Path, help="also write data, reader, image, ground truth and reading here (TSV)"
    )
    parser.add_argument("--json", action="store_true", help="print the same as one JSON object")
    arguments = parser.parse_args()
    os.environ.update(ONE_THREAD)
    readers: dict[str, Reader] = {
        "Tesseract": partial(read_with_tesseract, program=arguments.tesseract),
        **{f"RapidOCR {python}": partial(read_with_rapidocr, python=python) for python in arguments.rapidocr_python},
        **{
            f"dptr {path}": partial(
                read_with_dptr, path=path, words=arguments.lexicon, single_view=arguments.single_view
            )
            for path in arguments.model
        },
    }
    try:
        sets = [load(path, arguments.limit) for path in arguments.data]
        rows = [measure(crops, name, reader) for crops in sets for name, reader in readers.items()]
    except UserError as error:
        raise SystemExit(str(error)) from error
    if arguments.predictions:
        write_predictions(arguments.predictions, rows)
    print(json.dumps(as_json(sets, rows)) if arguments.json else table(sets, rows))


def load(path: Path, limit: int | None) -> Crops:
    """Open labelled crops by the protocol; count what it leaves out, by reason.

    Raises:
        UserError: there are none at ``path``, or none is left.
    """
    crops = Crops(str(path))
    for source in find_sources(path):
        for key, raw in source.labels():
            if len(crops.labels) == limit:
                continue
            label, reason = label_of(raw)
            if reason is None:
                try:
                    crops.images.append(decode(source.read(key)))
                except (UnusablePicture, OSError, KeyError):
                    reason = "picture cannot be read"
            if reason is not None:
                crops.left_out[reason] += 1
                continue
            crops.keys.append(key)
            crops.labels.append(label)
    if not crops.labels:
        raise UserError(f"no crop of {path} is left", "Take other data")
    return crops


def label_of(raw: str | Rejected | None) -> tuple[str, str | None]:
    """Return the label by the protocol, and why the crop is left out if it is."""
    if raw is None:
        return "", "no label"
    if isinstance(raw, Rejected):
        return "", raw.reason
    plain = to_ascii(raw)
    if len(plain) > LONGEST:
        return plain, f"longer than {LONGEST} characters"
    label = _CHARSET.project(plain)
    return label, None if label else "no letter or digit in the label"


def measure(crops: Crops, name: str, reader: Reader) -> Row:
    """Read one data set with one recogniser."""
    try:
        return Row(crops, name, reader(crops.images))
    except NotInstalled as error:
        return Row(crops, name, str(error))


def grouped(crops: Crops, hits: Sequence[bool]) -> dict[str, tuple[int, float]]:
    """Return how many crops there are of each length and of portrait shape, and which share of them was read."""
    found: dict[str, list[bool]] = {name: [] for name in (*_LENGTHS, "portrait")}
    for image, label, hit in zip(crops.images, crops.labels, hits, strict=True):
        found[next(name for name, longest in _LENGTHS.items() if len(label) <= longest)].append(hit)
        if image.height > image.width:
            found["portrait"].append(hit)
    return {name: (len(some), sum(some) / len(some)) for name, some in found.items() if some}


def table(sets: Sequence[Crops], rows: Sequence[Row]) -> str:
    """Return the rows for people, and below them what the protocol left out."""
    data = max(len(crops.name) for crops in sets)
    reader = max(len(row.reader) for row in rows)
    groups = (*_LENGTHS, "portrait")
    head = f"{'':{data}}  {'':{reader}}  crops  accuracy   95 % interval  1-NED  ms/crop  batched    MB"
    lines = [head + "".join(f"  {name:>8}" for name in groups)]
    for row in rows:
        found = row.figures()
        line = f"{row.crops.name:{data}}  {row.reader:{reader}}  {found['crops']:>5}  "
        if "missing" in found:
            lines.append(line + found["missing"])
            continue
        low, high = found["interval"]
        line += f"{found['accuracy']:>8.1%}  {low:>5.1%} - {high:>5.1%}  {found['one_minus_ned']:.3f}"
        line += f"  {found['milliseconds']:>7.1f}  {found['milliseconds_batched']:>7.1f}  {found['megabytes']:>4.1f}"
        shares = {name: f"{share:.1%}" for name, (_, share) in found["groups"].items()}
        lines.append(line + "".join(f"  {shares.get(name, '-'):>8}" for name in groups))
    lines += [f"{crops.name}: {count} left out: {why}" for crops in sets for why, count in crops.left_out.items()]
    return "\n".join(lines)


def as_json(sets: Sequence[Crops], rows: Sequence[Row]) -> dict[str, Any]:
    """Return the same figures for programs; groups are how many crops and which share of them was read."""
    described = [{"data": s.name, "crops": len(s.labels), "left_out": dict(s.left_out)} for s in sets]
    return {"protocol": "36", "sets": described, "rows": [row.figures() for row in rows]}


def write_predictions(path: Path, rows: Sequence[Row]) -> None:
    """Write a line for every reading: data, reader, image, ground truth and reading by the protocol; tab-separated."""
    with path.open("w", encoding="utf-8") as stream:
        for row in (row for row in rows if not isinstance(row.predictions, str)):
            for key, label, text in zip(row.crops.keys, row.crops.labels, row.texts, strict=True):
                print(row.crops.name, row.reader, key, label, text, sep="\t", file=stream)


if __name__ == "__main__":
    run_script(main)
