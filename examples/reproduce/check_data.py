"""Count and hash the data sets of docs/reproduce.md.

    python examples/reproduce/check_data.py data --hashes hashes.json

Each set is counted and compared with its publisher's count (datasets.toml). The SHA-256 of its labels, and with
``--images`` of its pictures too, goes into the file of hashes; where that file has one already, both must be equal. So
a copy on another machine is checked against the first. Exits with 1 when a set is missing or differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import UserError, run_script
from dptr.cache.printing import table
from dptr.cache.progress import progress

DATASETS = Path(__file__).parent / "datasets.toml"
MLT_LABELS = "gt.txt"


def main() -> None:
    """Parse, check, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the data sets")
    parser.add_argument("--sets", type=Path, default=DATASETS, help="TOML file of the data sets")
    parser.add_argument("--only", nargs="+", help="paths, or their beginnings, of the sets to check")
    parser.add_argument("--hashes", type=Path, help="JSON file of hashes; it is made or compared with")
    parser.add_argument("--images", action="store_true", help="hash pictures, too: reads every byte")
    arguments = parser.parse_args()
    known = json.loads(arguments.hashes.read_text()) if arguments.hashes and arguments.hashes.exists() else {}
    rows, found = [], dict(known)
    for described in data_sets(arguments.sets, arguments.only):
        counted = look(arguments.data / described["path"], arguments.images)
        rows.append(row_of(described, counted, known))
        if counted is not None:
            found[described["path"]] = {**known.get(described["path"], {}), **counted[1]}
    print(table(["data set", "expected", "found", "", "labels (SHA-256)"], rows, numbers=(1, 2)))
    if arguments.hashes:
        arguments.hashes.write_text(json.dumps(found, indent=1) + "\n")
    wrong = [row for row in rows if row[3] != "ok"]
    print(f"{len(rows) - len(wrong)} of {len(rows)} data sets are as described in {arguments.sets}")
    sys.exit(1 if wrong else 0)


def data_sets(path: Path, only: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the data sets of a TOML file, those whose path begins with one of ``only``."""
    sets: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["set"]
    chosen = [one for one in sets if only is None or one["path"].startswith(tuple(only))]
    if not chosen:
        raise UserError(f"no data set in {path} begins with {', '.join(only or ())}", "See the paths in that file")
    return chosen


def look(folder: Path, with_images: bool) -> tuple[int, dict[str, str]] | None:
    """Return how many labelled crops a folder has and their hashes; None where there is nothing."""
    if not folder.exists():
        return None
    labels, pictures, count = hashlib.sha256(), hashlib.sha256(), 0
    with progress(f"{folder.name}", None, "crops") as bar:
        for label, picture in crops(folder, with_images):
            labels.update(label.encode() + b"\n")
            pictures.update(hashlib.sha256(picture).digest())
            count += 1
            bar.advance()
    return count, {"labels": labels.hexdigest()} | ({"images": pictures.hexdigest()} if with_images else {})


def crops(folder: Path, with_images: bool) -> Iterator[tuple[str, bytes]]:
    """Yield label and encoded picture of each labelled crop, in any form below ``folder``, or named by its gt.txt."""
    if (folder / MLT_LABELS).is_file():
        for name, script, text in mlt_words(folder):
            yield f"{script}\t{text}", (folder / name).read_bytes() if with_images else b""
        return
    images = WordImages.open_as_written([folder])
    for sample in images.samples:
        yield sample.label, images.sources[sample.source].read(sample.key) if with_images else b""


def mlt_words(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield picture, script and text of each line of MLT's ground truth; a text may hold commas."""
    lines = (folder / MLT_LABELS).read_text(encoding="utf-8-sig").splitlines()
    for number, line in enumerate(lines, 1):
        parts = line.split(",", 2)
        if len(parts) != 3:
            raise UserError(
                f"{folder / MLT_LABELS}, line {number}: no PICTURE,SCRIPT,TEXT", "Use task 2's ground truth"
            )
        yield parts[0].strip(), parts[1].strip(), parts[2]


def row_of(
    described: dict[str, Any], counted: tuple[int, dict[str, str]] | None, known: dict[str, dict[str, str]]
) -> tuple[str, ...]:
    """Return a set's row of the table; the fourth cell is ``ok`` where all is as expected."""
    expected = f"{described['samples']:,}"
    if counted is None:
        return described["name"], expected, "-", "missing", ""
    count, hashes = counted
    before = known.get(described["path"], {})
    verdict = "ok" if count == described["samples"] else "other count"
    if any(before.get(what, hashed) != hashed for what, hashed in hashes.items()):
        verdict = "other hash"
    return described["name"], expected, f"{count:,}", verdict, hashes["labels"][:12]


if __name__ == "__main__":
    run_script(main)
