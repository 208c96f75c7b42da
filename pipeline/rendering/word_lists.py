"""What rendering is fed with: words, read as ``embed-text`` reads them, and photos for backgrounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dptr.cache.errors import UserError
from dptr.cache.file_names import QUARANTINE_FILE
from dptr.cache.normalization import Normalization
from dptr.cache.progress import note
from dptr.cache.stores.files import scratch_folder
from dptr.cache.stores.quarantine import Quarantine
from dptr.pipeline.photos.photo import Photo
from dptr.pipeline.photos.photo_files import find_photos
from dptr.pipeline.text.corpus import CorpusSettings, read_corpus

_ROWS = 65536


def read_words(files: Sequence[str], max_length: int = 25, lines: bool = False) -> list[str]:
    """Return the distinct words of a corpus by first occurrence, in whatever script they are; note what is left out.

    With ``lines``, a label is a whole line, or the whole value of a table's row, with its spaces.

    Raises:
        UserError: a file is missing, or none holds a word.
    """
    normalization = Normalization(unicode="nfc", keep_spaces=lines, max_label_length=max_length)
    settings = CorpusSettings("line" if lines else "word", normalization=normalization, charset="auto")
    with (
        scratch_folder() as scratch,
        Quarantine(Path(scratch) / QUARANTINE_FILE) as quarantine,
        read_corpus(files, settings, quarantine) as corpus,
    ):
        for reason, count in quarantine.counts.most_common():
            note(f"{count:,} left out: {reason}" + f" (such as {quarantine.examples[reason][0]!r})")
        return [label for batch in corpus.batches(_ROWS) for label in batch.labels]


def photo_paths(folder: Path) -> list[Path]:
    """Return the photo files under a folder.

    Raises:
        UserError: there is none.
    """
    paths = [Path(found.source) for found in find_photos([folder]) if isinstance(found, Photo) and not found.key]
    if not paths:
        raise UserError(f"no photo in {folder}", "Name a folder of image files")
    return paths
