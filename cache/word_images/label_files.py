"""Label files beside images: tab-separated, ICDAR's ``name, "text"``, PaddleOCR's, and JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dptr.cache.errors import UserError
from dptr.cache.pictures import read_encoded

#: Names of label files in a folder, the most telling first; several PaddleOCR files in one folder are all read.
PATTERNS = ("labels.tsv", "gt.txt", "labels.jsonl", "rec_gt_*.txt", "label.txt", "labels.txt", "*.txt")
SUFFIXES = (".tsv", ".txt", ".jsonl")

_IMAGE_KEYS = ("image", "file", "file_name", "filename", "path")
_LABEL_KEYS = ("label", "text")
_ROWS_PROBED = 50
_ICDAR = re.compile(r'\s*([^,]+?)\s*,\s*(?:"(.*)"|(.*?))\s*')


@dataclass(frozen=True)
class LabelFile:
    """A text file that names images, relative to ``folder``, and what they say."""

    path: Path
    folder: Path

    @property
    def name(self) -> str:
        """The label file's path."""
        return str(self.path)

    @classmethod
    def open(cls, path: Path) -> LabelFile:
        """Find the folder that the file's image names start from: its own, or the one above as in PaddleOCR's data.

        Raises:
            UserError: no image that it names is there.
        """
        names = [name for name, _ in islice(_rows(path), _ROWS_PROBED)]
        for folder in (path.parent, path.parent.parent):
            if any((folder / name).is_file() for name in names):
                return cls(path, folder)
        example = f", for one {names[0]!r}" if names else ""
        raise UserError(
            f"{path} names no image that is there{example}", "Each line holds an image's path, a tab and its label"
        )

    def labels(self) -> Iterator[tuple[str, str | None]]:
        """Yield image name and label of each line; a line that cannot be split yields itself and None."""
        return _rows(self.path)

    def read(self, key: str) -> bytes:
        """Return the bytes of one image file."""
        return read_encoded(self.folder / key)


def find(folder: Path) -> list[Path]:
    """Return the label files of ``folder``: all that match the first of :data:`PATTERNS` that matches any."""
    for pattern in PATTERNS:
        if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
            return found
    return []


def _rows(path: Path) -> Iterator[tuple[str, str | None]]:
    parse = _parse_json if path.suffix == ".jsonl" else _parse_text
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            line = raw.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
            if not line.strip():
                continue
            try:
                yield parse(line.decode("utf-8"))
            except ValueError:  # not UTF-8, not JSON, or no label in it
                yield f"line {number}", None


def _parse_text(line: str) -> tuple[str, str]:
    name, tab, label = line.partition("\t")
    if tab:
        return name, label
    match = _ICDAR.fullmatch(line)
    if match is None:
        raise ValueError(line)
    name, quoted, plain = match.groups()
    return name, plain if quoted is None else quoted.replace('\\"', '"').replace("\\\\", "\\")


def _parse_json(line: str) -> tuple[str, str]:
    row = json.loads(line)
    names = [row[key] for key in _IMAGE_KEYS if key in row] if isinstance(row, dict) else []
    labels = [row[key] for key in _LABEL_KEYS if key in row] if isinstance(row, dict) else []
    if not names or not labels or not isinstance(names[0], str) or not isinstance(labels[0], str):
        raise ValueError(line)
    return names[0], labels[0]
