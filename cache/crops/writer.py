"""Writing labelled word images; each form's writer is in the file of its reader.

Rendering and packing use it. Output of every form is complete or absent: labels, or the name, are written last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dptr.cache.crops import label_files, lmdb_form, parquet_form
from dptr.cache.crops.dataset import UNREADABLE, decode_crop
from dptr.cache.crops.form import Rejected
from dptr.cache.crops.sources import find_sources
from dptr.cache.errors import UserError
from dptr.cache.file_names import LABELS_FILE
from dptr.cache.progress import progress
from dptr.cache.rejections import Tally
from dptr.cache.stores.lock import locked, locked_file


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
    """Open ``out`` for labelled images; its suffix chooses the form: ``.lmdb``, ``.parquet``, else a folder."""
    is_file = out.suffix in _FILES
    finished = out if is_file else out / LABELS_FILE
    with (locked_file if is_file else locked)(out):
        if finished.exists():
            raise UserError(f"{finished} is there already", "Name another place, or remove it first")
        with _FILES.get(out.suffix, label_files.write)(out) as writer:
            yield writer


@dataclass
class PackSummary:
    """Result of packing: output, number of crops, rejected crops."""

    out: Path
    rows: int = 0
    rejected: Tally = field(default_factory=Tally)


def pack_crops(folder: Path, out: Path) -> PackSummary:
    """Pack the labelled word images in ``folder``, of any form, into ``out``, which ends in ``.lmdb`` or ``.parquet``.

    Bytes and labels are stored unchanged; labels are normalised when they are used. Damaged images are rejected."""
    if out.suffix not in _FILES:
        raise UserError(f"{out} is neither .lmdb nor .parquet", "Give the output one of these suffixes")
    sources = find_sources(folder)
    summary = PackSummary(out)
    with write_word_images(out) as writer, progress("packing", None, "images") as bar:
        for source in sources:
            for key, label in source.labels():
                bar.advance()
                if isinstance(label, Rejected):
                    summary.rejected.add(source.name, key, "", label.reason)
                    continue
                try:
                    encoded = source.read(key)
                    decode_crop(encoded)
                except UNREADABLE as error:
                    summary.rejected.add(source.name, key, label, f"unreadable image: {error}")
                    continue
                writer.write(encoded, label)
                summary.rows += 1
        if not summary.rows:
            reasons = [f"{one} ({one.reason})" for one in summary.rejected.listed[:1]]
            raise UserError(f"no image in {folder} can be packed", f"For one: {(reasons or ['there are none'])[0]}")
    return summary
