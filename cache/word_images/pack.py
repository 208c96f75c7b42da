"""Labelled word images of any form into one LMDB or Parquet: bytes and labels unchanged, damaged images left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from dptr.cache.errors import UserError
from dptr.cache.pictures import UnusablePicture
from dptr.cache.progress import progress
from dptr.cache.word_images.dataset import decode_crop
from dptr.cache.word_images.form import Refused
from dptr.cache.word_images.sources import find_sources
from dptr.cache.word_images.writer import write_word_images

_EXAMPLES = 3


@dataclass
class PackSummary:
    """What was packed: where, how many, and what was left out for which reason, with examples."""

    out: Path
    rows: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def refuse(self, reason: str, where: str) -> None:
        """Count one image that is left out."""
        self.refused[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(where)


def pack_crops(folder: Path, out: Path) -> PackSummary:
    """Pack the labelled word images in ``folder`` into ``out``, which ends in ``.lmdb`` or ``.parquet``.

    Labels are stored as they are; they are normalised when they are used.

    Raises:
        UserError: ``out`` ends otherwise or is there already, ``folder`` holds no labelled images or none is readable.
    """
    if out.suffix not in (".lmdb", ".parquet"):
        raise UserError(f"{out} is neither .lmdb nor .parquet", "Name the output so, for the form that you want")
    sources = find_sources(folder)
    summary = PackSummary(out)
    with write_word_images(out) as writer, progress("packing", None, "images") as bar:
        for source in sources:
            for key, label in source.labels():
                bar.advance()
                if isinstance(label, Refused):
                    summary.refuse(label.reason, f"{source.name} {key}")
                    continue
                try:
                    encoded = source.read(key)
                    decode_crop(encoded)
                except (OSError, KeyError, ValueError, UnusablePicture) as error:
                    summary.refuse("unreadable image", f"{source.name} {key} ({error})")
                    continue
                writer.write(encoded, label)
                summary.rows += 1
        if not summary.rows:
            example = next((where for wheres in summary.examples.values() for where in wheres), "there are none")
            raise UserError(f"no image in {folder} can be packed", f"For one: {example}")
    return summary
