"""Which photos earlier runs have read: what has not changed since is neither read nor rejected twice.

It only saves work. A store without this file, or with an old one, gives the same bank: whether a photo is in it is told
by the committed catalogues alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dptr.cache.file_names import PHOTOS_FILE
from dptr.cache.progress import note
from dptr.cache.stores.files import atomic_path, begun_anew
from dptr.pipeline.photos.photo import Photo

SCHEMA = pa.schema(
    [
        ("place", pa.string()),
        ("size", pa.int64()),
        ("modified_ns", pa.int64()),
        ("image_sha256", pa.string()),  # null when it could not be read
        ("reason", pa.string()),  # why it was rejected; null for those that can be used
    ]
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of a photo."""

    size: int
    modified_ns: int
    image_sha256: str | None
    reason: str | None


class SeenPhotos:
    """The photos that this bank's runs have read, by place.

    Whether the file is still what they wrote is checked by the manifest (``Manifest.rewriting``).
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / PHOTOS_FILE
        self._seen: dict[str, Seen] = {}
        if not self._path.is_file():
            return
        try:
            for row in pq.read_table(self._path, schema=SCHEMA).to_pylist():
                place = row.pop("place")
                self._seen[place] = Seen(**row)
        except (pa.ArrowException, OSError, ValueError):
            self._seen.clear()
            note(begun_anew(self._path))

    def recall(self, photo: Photo) -> Seen | None:
        """Return what came of ``photo``, or None when it is new or its file has changed."""
        seen = self._seen.get(photo.place)
        unchanged = seen is not None and (seen.size, seen.modified_ns) == (photo.size, photo.modified_ns)
        return seen if unchanged else None

    def remember(self, photo: Photo, image_sha256: str | None, reason: str | None) -> None:
        """Keep what came of ``photo``."""
        self._seen[photo.place] = Seen(photo.size, photo.modified_ns, image_sha256, reason)

    def save(self) -> None:
        """Write the file, atomically."""
        columns = {
            "place": list(self._seen),
            **{
                name: [getattr(seen, name) for seen in self._seen.values()]
                for name in ("size", "modified_ns", "image_sha256", "reason")
            },
        }
        with atomic_path(self._path) as path:
            pq.write_table(pa.table(columns, SCHEMA), path, compression="zstd")
