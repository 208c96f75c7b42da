"""Inputs of rendering: words, read as in ``embed-text``, and background photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from dptr.cache.choices import Unit
from dptr.cache.errors import UserError
from dptr.cache.file_names import QUARANTINE_FILE
from dptr.cache.progress import note
from dptr.cache.rejections import Quarantine
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.photos.photo_files import Photo, find_photos
from dptr.pipeline.text.corpus import CorpusSettings, read_corpus

_ROWS = 65536


def read_words(files: Sequence[str], unit: Unit = "word", max_length: int = 25) -> list[str]:
    """Return the distinct words or lines of a corpus by first occurrence, in any script; note rejected ones.

    A line, or the whole value of a table's row, keeps its spaces.

    Raises:
        UserError: a file is missing, or none holds a word.
    """
    return list(text_counts(files, unit, max_length))


def text_counts(files: Sequence[str], unit: Unit, max_length: int = 100) -> dict[str, float]:
    """Return the distinct words or lines of a corpus with how often each occurs, by first occurrence.

    Raises:
        UserError: a file is missing or no text, or none holds a word.
    """
    normalization = Normalization(unicode="nfc", max_label_length=max_length, keep_spaces=unit == "line")
    settings = CorpusSettings(unit=unit, normalization=normalization, charset="auto")
    with (
        TemporaryDirectory(prefix="dptr-") as scratch,
        Quarantine(Path(scratch) / QUARANTINE_FILE) as quarantine,
        read_corpus(files, settings, quarantine) as corpus,
    ):
        for reason, count in quarantine.counts.most_common():
            note(f"{count:,} rejected: {reason}" + f" (such as {quarantine.examples[reason][0]!r})")
        pairs = (pair for batch in corpus.batches(_ROWS) for pair in zip(batch.labels, batch.counts, strict=True))
        return {label: float(count) for label, count in pairs}


def photo_paths(folder: Path) -> list[Path]:
    """Return the photo files under a folder.

    Raises:
        UserError: there is none.
    """
    paths = [Path(found.source) for found in find_photos([folder]) if isinstance(found, Photo) and not found.key]
    if not paths:
        raise UserError(f"no photo in {folder}", "Name a folder of image files")
    return paths
