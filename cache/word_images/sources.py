"""Where labelled word images lie: several forms behind one interface, told apart by looking, never by a flag."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from dptr.cache.errors import UserError
from dptr.cache.word_images import label_files
from dptr.cache.word_images.label_files import LabelFile
from dptr.cache.word_images.lmdb_form import LmdbSource
from dptr.cache.word_images.parquet_form import ParquetSource
from dptr.cache.word_images.tar_form import TarSource

ACCEPTED_FORMS = (
    "Accepted are LMDB (num-samples, image-%09d, label-%09d), a folder with labels.tsv, gt.txt, labels.jsonl or "
    "PaddleOCR's rec_gt_*.txt or label.txt, Parquet with image and label, and WebDataset .tar"
)


class Source(Protocol):
    """One data set of labelled images. It is picklable and opens its files where it is used."""

    @property
    def name(self) -> str:
        """Where it lies, for people."""

    def labels(self) -> Iterator[tuple[str, str | None]]:
        """Yield key and raw label of each sample in order; None where a label, or the image for it, is missing."""

    def read(self, key: str) -> bytes:
        """Return one encoded image.

        Raises:
            OSError, KeyError: it is not there.
        """


def find_sources(path: Path) -> list[Source]:
    """Return the data sets at ``path``: one file, one folder, or a folder of archives at any depth.

    Raises:
        UserError: there is none; the message lists the accepted forms.
    """
    if not path.exists():
        raise UserError(f"there is no {path}", "Name a folder or file with labelled word images")
    sources = _in_folder(path) if path.is_dir() else _in_file(path)
    if not sources:
        raise UserError(f"no labelled word images in {path}", ACCEPTED_FORMS)
    return sources


def _in_file(path: Path) -> list[Source]:
    if path.suffix in (".lmdb", ".mdb"):
        return [LmdbSource(path.parent if path.name == "data.mdb" else path)]
    if path.suffix == ".parquet":
        return [ParquetSource(path)]
    if path.suffix == ".tar":
        return [TarSource(path)]
    return [LabelFile.open(path)] if path.suffix in label_files.SUFFIXES else []


def _in_folder(folder: Path) -> list[Source]:
    if (folder / "data.mdb").is_file():
        return [LmdbSource(folder)]
    if files := label_files.find(folder):
        return [LabelFile.open(path) for path in files]
    # The field's collections are trees of LMDB folders, and archives come in numbered parts.
    patterns = ("data.mdb", "*.parquet", "*.tar")
    return [source for pattern in patterns for path in sorted(folder.rglob(pattern)) for source in _in_file(path)]
