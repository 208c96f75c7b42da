"""Labelled word images as dptr writes them; each form's writer stands beside its reader.

Rendering and packing both end here. Whatever the form, it is whole or absent: the labels, or the name, come last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from dptr.cache.errors import UserError
from dptr.cache.file_names import LABELS_FILE
from dptr.cache.stores.lock import locked, locked_file
from dptr.cache.word_images import label_files, lmdb_form, parquet_form


class WordImageWriter(Protocol):
    """Takes labelled images in order."""

    def write(self, image: bytes, label: str) -> None:
        """Add one image, encoded as JPEG or PNG, and its label."""


#: Forms that are one file, by its ending; anything else is a folder with ``labels.tsv``.
_FILES: dict[str, Callable[[Path], AbstractContextManager[WordImageWriter]]] = {
    ".lmdb": lmdb_form.write,
    ".parquet": parquet_form.write,
}


@contextmanager
def write_word_images(out: Path) -> Iterator[WordImageWriter]:
    """Open ``out`` for labelled images; the form by its name: ``.lmdb``, ``.parquet``, anything else is a folder.

    Raises:
        UserError: ``out`` holds labelled images already, or another process writes it.
    """
    is_file = out.suffix in _FILES
    finished = out if is_file else out / LABELS_FILE
    with (locked_file if is_file else locked)(out):
        if finished.exists():
            raise UserError(f"{finished} is there already", "Name another place, or remove it first")
        with _FILES.get(out.suffix, label_files.write)(out) as writer:
            yield writer
