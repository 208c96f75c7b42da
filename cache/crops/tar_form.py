"""WebDataset tar: members with one stem form a sample: an image and a label (``.txt`` or ``.json``).

A key holds the image's offset in the file, for random access.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dptr.cache.crops.form import MISSING, Form, Rejected
from dptr.cache.errors import UserError
from dptr.cache.pictures import IMAGE_SUFFIXES, LARGEST_FILE

#: The most specific first: JSON may be the label, or only metadata.
_LABEL_SUFFIXES = ("txt", "label", "json")
_LARGEST_LABEL = 1 << 20


def members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an uncompressed tar file, up to its end or to the first damage.

    Raises:
        tarfile.TarError: no tar file, or damaged; :mod:`tarfile` would take damage between members for the end.
    """
    with tarfile.open(path, "r:") as archive:
        yield from archive
        # The real end is a block of zeros.
        if read_piece(path, archive.offset, tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"torn at byte {archive.offset}")


def read_piece(path: Path, offset: int, size: int) -> bytes:
    """Return ``size`` bytes from ``offset`` on, fewer at the file's end.

    Raises:
        OSError: the file cannot be read, or the size is too large for a picture.
    """
    if size > LARGEST_FILE:
        raise OSError(f"{size} bytes are too many for a picture")
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(size)


@dataclass(frozen=True)
class TarSource:
    """One uncompressed shard; a sample's key is its stem and where its image is in the file, ``stem@offset+size``."""

    path: Path

    @property
    def name(self) -> str:
        """See :meth:`dptr.cache.crops.form.Source.name`."""
        return str(self.path)

    def labels(self) -> Iterator[tuple[str, str | Rejected]]:
        """See :meth:`dptr.cache.crops.form.Source.labels`; links count as missing."""
        labels: dict[str, tuple[int, str | Rejected]] = {}
        keys: dict[str, str] = {}
        try:
            for member in members(self.path):
                stem, suffix = _split(member.name)
                is_image = f".{suffix}" in IMAGE_SUFFIXES
                if is_image or suffix in _LABEL_SUFFIXES:
                    labels.setdefault(stem, (len(_LABEL_SUFFIXES), MISSING))
                # A link may lead out of the archive, to itself, or nowhere.
                if not member.isreg() or member.issparse():
                    continue
                if is_image:
                    keys[stem] = f"{stem}@{member.offset_data}+{member.size}"
                elif member.size <= _LARGEST_LABEL and suffix in _LABEL_SUFFIXES[: labels[stem][0]]:
                    label = _label(read_piece(self.path, member.offset_data, member.size), suffix)
                    labels[stem] = _LABEL_SUFFIXES.index(suffix), label
        except tarfile.TarError as error:
            raise UserError(
                f"{self.path} cannot be read as tar: {error}", "Copy or write it again, as an uncompressed WebDataset"
            ) from error
        for stem, (_, label) in labels.items():
            yield (keys[stem], label) if stem in keys else (stem, MISSING)

    def read(self, key: str) -> bytes:
        """See :meth:`dptr.cache.crops.form.Source.read`."""
        offset, size = key.rpartition("@")[2].split("+")
        return read_piece(self.path, int(offset), int(size))


FORM = Form("WebDataset .tar", ("*.tar",), TarSource)


def _split(member: str) -> tuple[str, str]:
    """Split at the first dot of the file's name, as WebDataset does."""
    folder, slash, name = member.rpartition("/")
    base, _, suffix = name.partition(".")
    return folder + slash + base, suffix.lower()


def _label(content: bytes, suffix: str) -> str | Rejected:
    if suffix != "json":
        return content.decode("utf-8", "replace").rstrip("\r\n")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return Rejected("label is no JSON")
    label = value.get("label", value.get("text")) if isinstance(value, dict) else None
    return label if isinstance(label, str) else MISSING
