"""Label files beside images: tab-separated, ICDAR's ``name, "text"``, PaddleOCR's, and JSON lines."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from dptr.cache.crops.form import Form, NotLabelled, Rejected
from dptr.cache.errors import UserError
from dptr.cache.file_names import LABELS_FILE
from dptr.cache.pictures import read_encoded
from dptr.cache.stores.files import atomic_path

#: Names of label files in a folder, the most specific first; several PaddleOCR files in one folder are all read.
PATTERNS = (LABELS_FILE, "gt.txt", "labels.jsonl", "rec_gt_*.txt", "rec_gt.txt", "label.txt", "labels.txt")
_FORMS = 'Known lines: IMAGE, a tab and LABEL; ICDAR\'s IMAGE, "LABEL"; in .jsonl {"image": …, "label": …}'
#: PPOCRLabel's list of the pages that are done: a page's path, a tab and 1.
_PAGES_DONE = "fileState.txt"

_IMAGE_KEYS = ("image", "file", "file_name", "filename", "path")
_LABEL_KEYS = ("label", "text")
_ROWS_PROBED = 50
_SHOWN = 60
_ICDAR = re.compile(r'\s*([^,]+?)\s*,\s*(?:"(.*)"|(.*?))\s*')


#: Marks boxes on a page, as in files of PPOCRLabel and PaddleOCR's detection.
_BOXES = re.compile(r'\s*\[\s*(\{.*"transcription"|\]\s*$)')
OUTSIDE = Rejected("image lies outside the folder of the label file")
_PAGE = Rejected("label is a list of boxes on a page")
_EXPORT = "In PPOCRLabel, File > Export Recognition Result writes rec_gt.txt and crop_img/: name their folder"


@dataclass(frozen=True)
class LabelFile:
    """A text file with names of images, relative to ``folder``, and their labels."""

    path: Path
    folder: Path

    @property
    def name(self) -> str:
        """See :meth:`dptr.cache.crops.form.Source.name`."""
        return str(self.path)

    @classmethod
    def open(cls, path: Path) -> LabelFile:
        """Find the folder that image names are relative to: the file's own, or its parent as in PaddleOCR's data.

        Raises:
            NotLabelled: none of its images exists, or it labels whole pages.
        """
        if path.name == _PAGES_DONE:
            raise NotLabelled(f"{path} is PPOCRLabel's list of finished pages", _EXPORT)
        rows = list(islice(_rows(path), _ROWS_PROBED))
        if any(label == _PAGE for _, label in rows):
            raise NotLabelled(f"{path} holds boxes on whole pages, not labels of crops", _EXPORT)
        for folder in (path.parent, path.parent.parent):
            if any(_is_file(folder / name) for name, _ in rows if _inside(folder, name)):
                return cls(path, folder)
        problem = "names no existing image"
        for name, label in rows[:1]:
            problem += f", for one {name!r}" if isinstance(label, str) else f": {name}: {label.reason}"
        raise NotLabelled(f"{path} {problem}", f"{_FORMS}; paths start in the file's folder or the one above")

    def labels(self) -> Iterator[tuple[str, str | Rejected]]:
        """Yield image name and label of each line, or the line's number and why it cannot be used."""
        for name, label in _rows(self.path):
            yield name, label if isinstance(label, Rejected) or _inside(self.folder, name) else OUTSIDE

    def read(self, key: str) -> bytes:
        """See :meth:`dptr.cache.crops.form.Source.read`."""
        return read_encoded(self.folder / key)


FORM = Form(
    "a folder with labels.tsv, gt.txt, labels.jsonl or PaddleOCR's rec_gt_*.txt or label.txt",
    ("*.tsv", "*.txt", "*.jsonl"),
    LabelFile.open,
)


def find(folder: Path) -> list[Path]:
    """Return the label files of ``folder``: all that match the first of :data:`PATTERNS` that matches any."""
    return next(iter(candidates(folder)[:-1]), [])


def candidates(folder: Path) -> list[list[Path]]:
    """Return the files of ``folder`` that match each of :data:`PATTERNS`, where any does; last, all its text files."""
    matching = [sorted(path for path in folder.glob(pattern) if path.is_file()) for pattern in (*PATTERNS, "*.txt")]
    return [files for files in matching[:-1] if files] + matching[-1:]


def _inside(folder: Path, name: str) -> bool:
    """Return whether ``name`` is within ``folder``: label files of others must not reach outside."""
    return Path(os.path.abspath(folder / name)).is_relative_to(os.path.abspath(folder))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for the file system
        return False


def _rows(path: Path) -> Iterator[tuple[str, str | Rejected]]:
    parse = _parse_json if path.suffix == ".jsonl" else _parse_text
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            line = raw.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n")
            if not line.strip():
                continue
            try:
                yield parse(line.decode("utf-8"))
            except (ValueError, RecursionError):  # not UTF-8, not JSON or nested without end, or no label in it
                shown = line[:_SHOWN].decode("utf-8", "backslashreplace")
                yield f"line {number}", Rejected(f"line is not understood: {shown!r}")


def _parse_text(line: str) -> tuple[str, str | Rejected]:
    name, tab, label = line.partition("\t")
    if tab and _BOXES.match(label):
        return name, _PAGE
    if tab and "\t" in label:
        raise ValueError(line)
    if tab:
        return name, label
    match = _ICDAR.fullmatch(line)
    if match is None:
        raise ValueError(line)
    name, quoted, plain = match.groups()
    return name, plain if quoted is None else quoted.replace('\\"', '"').replace("\\\\", "\\")


def _parse_json(line: str) -> tuple[str, str | Rejected]:
    row = json.loads(line)
    names = [row[key] for key in _IMAGE_KEYS if key in row] if isinstance(row, dict) else []
    labels = [row[key] for key in _LABEL_KEYS if isinstance(row.get(key), str)] if isinstance(row, dict) else []
    if not names or not labels or not isinstance(names[0], str):
        raise ValueError(line)
    return names[0], labels[0]


class FolderWriter:
    """Writes images into a folder and their labels into an open ``labels.tsv``."""

    def __init__(self, folder: Path, labels: IO[str]) -> None:
        self._folder = folder
        self._labels = labels
        self._count = 0

    def write(self, image: bytes, label: str) -> None:
        """Add one image, encoded, and its label; :class:`UserError` where that has a tab or a line break."""
        if set(label) & {"\t", "\n", "\r"}:
            raise UserError(f"label {label!r} has a tab or a line break, which labels.tsv cannot hold", "Write LMDB")
        self._count += 1
        suffix = "png" if image.startswith(b"\x89PNG") else "jpg"
        name = f"images/{self._count:09d}.{suffix}"
        (self._folder / name).write_bytes(image)
        self._labels.write(f"{name}\t{label}\n")


@contextmanager
def write(out: Path) -> Iterator[FolderWriter]:
    """Open a new folder for labelled images; its label file appears when all is written."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    with atomic_path(out / LABELS_FILE) as path, path.open("w", encoding="utf-8", newline="\n") as labels:
        yield FolderWriter(out, labels)
