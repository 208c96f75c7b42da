"""WebDataset tar: the members of one stem are one sample, its image ``.jpg`` or alike, its label ``.txt`` or ``.json``.

Listing the members once gives each image's place in the file, from which it is read directly, in any order.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dptr.cache.errors import UserError
from dptr.cache.pictures import IMAGE_SUFFIXES

_LABEL_SUFFIXES = ("txt", "label", "json")


@dataclass
class TarSource:
    """One uncompressed shard."""

    path: Path
    _place: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.path)

    def labels(self) -> Iterator[tuple[str, str | None]]:
        """Yield stem and label of each sample; None where its label or its image is missing.

        Raises:
            UserError: it is no plain tar file.
        """
        labels: dict[str, str | None] = {}
        try:
            with tarfile.open(self.path, "r:") as archive:
                for member in archive:
                    stem, suffix = _split(member.name)
                    if f".{suffix}" in IMAGE_SUFFIXES:
                        self._place[stem] = (member.offset_data, member.size)
                        labels.setdefault(stem, None)
                    elif suffix in _LABEL_SUFFIXES and (content := archive.extractfile(member)):
                        labels[stem] = _label(content.read(), suffix)
        except tarfile.TarError as error:
            raise UserError(f"{self.path} cannot be read ({error})", "Give an uncompressed WebDataset .tar") from error
        for stem, label in labels.items():
            yield stem, label if stem in self._place else None

    def read(self, key: str) -> bytes:
        """Return one encoded image; :meth:`labels` has to have listed the shard before.

        Raises:
            KeyError, OSError: it is missing or cannot be read.
        """
        offset, size = self._place[key]
        with self.path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)


def _split(member: str) -> tuple[str, str]:
    """Split at the first dot of the file's name, as WebDataset does."""
    folder, slash, name = member.rpartition("/")
    base, _, suffix = name.partition(".")
    return folder + slash + base, suffix.lower()


def _label(content: bytes, suffix: str) -> str | None:
    if suffix != "json":
        return content.decode("utf-8", "replace").rstrip("\r\n")
    try:
        value = json.loads(content)
    except ValueError:
        return None
    label = value.get("label", value.get("text")) if isinstance(value, dict) else None
    return label if isinstance(label, str) else None
