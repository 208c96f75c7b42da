"""The shards of a store of pictures, each made of groups of pictures that are never parted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dptr.cache.choices import EmbeddingsDtype
from dptr.cache.errors import UserError
from dptr.cache.stores.manifest import Shard
from dptr.cache.stores.shards import Embeddings, write_shard
from dptr.pipeline.choices import Precision
from dptr.pipeline.clip.loading import ImageEncoder, load_clip
from dptr.pipeline.executors.executor import Work, Worker
from dptr.pipeline.executors.ray_cluster import device_of_worker, fetched
from dptr.pipeline.executors.store_builder import Place, ShardToMake


class ShardInMaking:
    """Collects a fixed number of pictures and encodes them in batches that end with the shard.

    Args:
        encoder: encodes.
        place: where the shard comes in its store.
        schema: of the catalogue; ``id`` is filled in here.
        capacity: pictures it takes at most.
        tokens_per_picture: tokens kept of each picture.
        dtype: how embeddings are stored.
        batch: pictures per forward pass.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        place: Place,
        schema: pa.Schema,
        capacity: int,
        tokens_per_picture: int,
        dtype: EmbeddingsDtype,
        batch: int,
    ) -> None:
        self._encoder = encoder
        self._number, self._first_id = place.number, place.first_id
        self._schema = schema
        self._dtype = dtype
        self._batch = batch
        # Rounded to the stored format at once where that is possible: a shard in memory is then half as large.
        held = np.float16 if dtype == "float16" else np.float32
        self._tokens: NDArray[np.floating] = np.empty((capacity, tokens_per_picture, encoder.dim), held)
        self._pooled = np.empty((capacity, encoder.dim), np.float32)
        self._waiting: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
        self._rows: list[dict[str, Any]] = []
        self._encoded = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def full(self) -> bool:
        """Whether it takes no more pictures."""
        return len(self) >= len(self._pooled)

    def add(self, row: dict[str, Any], pixels: NDArray[np.float32], kept: NDArray[np.int64]) -> None:
        """Take a picture.

        Args:
            row: its row of the catalogue.
            pixels: as the encoder takes them, shape (3, height, width).
            kept: positions of the tokens to keep, shape (tokens_per_picture,).
        """
        self._rows.append({"id": self._first_id + len(self._rows), **row})
        self._waiting.append((pixels, kept))
        if len(self._waiting) == self._batch:
            self._encode()

    def distinct(self, column: str) -> int:
        """Return how many different values a column of the catalogue has so far."""
        return len({row[column] for row in self._rows})

    def encode_rest(self) -> None:
        """Encode the pictures that wait for a full batch."""
        if self._waiting:
            self._encode()

    def write(self, folder: Path, details: dict[str, Any]) -> Shard:
        """Encode what is left and write the shard; the caller commits it."""
        self.encode_rest()
        rows, count = len(self), self._tokens.shape[1]
        embeddings = Embeddings(
            self._tokens[:rows].reshape(rows * count, -1), np.full(rows, count, np.int64), self._pooled[:rows]
        )
        catalogue = pa.Table.from_pylist(self._rows, self._schema)
        return write_shard(folder, self._number, catalogue, embeddings, self._dtype, details)

    def _encode(self) -> None:
        tokens, pooled = self._encoder.encode(np.stack([pixels for pixels, _ in self._waiting]))
        kept = np.stack([positions for _, positions in self._waiting])
        rows = slice(self._encoded, self._encoded + len(kept))
        with np.errstate(over="ignore"):
            self._tokens[rows] = np.take_along_axis(tokens, kept[:, :, None], axis=1)
        if not np.isfinite(self._tokens[rows]).all():
            raise UserError(f"the image encoder gives embeddings that {self._dtype} cannot hold", "Use --dtype float32")
        self._pooled[rows] = pooled
        self._encoded += len(kept)
        self._waiting.clear()


@dataclass(frozen=True)
class Picture:
    """One picture for a store.

    Attributes:
        row: its row of the catalogue, but for the id.
        pixels: as the encoder takes them, shape (3, height, width).
        kept: positions of the tokens to keep, shape (tokens,).
    """

    row: dict[str, Any]
    pixels: NDArray[np.float32]
    kept: NDArray[np.int64]


@dataclass(frozen=True)
class ShardForm:
    """What all shards of a store have in common.

    Attributes:
        schema: of the catalogue. rows: pictures of a full shard. tokens: kept of each picture. dtype: of the
            embeddings.
        batch: pictures of a forward pass. counted: a detail of each shard, by the column whose values it counts.
    """

    schema: pa.Schema
    rows: int
    tokens: int
    dtype: EmbeddingsDtype
    batch: int
    counted: tuple[str, str] | None = None

    def begin(self, encoder: ImageEncoder, place: Place) -> ShardInMaking:
        """Return an empty shard."""
        return ShardInMaking(encoder, place, self.schema, self.rows, self.tokens, self.dtype, self.batch)

    def details(self, shard: ShardInMaking) -> dict[str, Any]:
        """Return what the manifest says about a shard."""
        return {} if self.counted is None else {self.counted[0]: shard.distinct(self.counted[1])}


def shard_worker(
    folder: Path, encoder: ImageEncoder, clip: str, precision: Precision, form: ShardForm
) -> Worker[Shard]:
    """Return what makes shards of groups of pictures in ``folder``, with ``encoder`` in this process."""
    return Worker(_work_of(folder, encoder, form), _make_work, (folder.absolute(), clip, precision, form))


def _make_work(folder: Path, clip: str, precision: Precision, form: ShardForm) -> Work[Shard]:
    return _work_of(folder, ImageEncoder(load_clip(clip, precision, device_of_worker())), form)


def _work_of(folder: Path, encoder: ImageEncoder, form: ShardForm) -> Work[Shard]:
    def encode(to_make: ShardToMake) -> Callable[[], Shard]:
        shard = form.begin(encoder, to_make.place)
        for pictures in to_make.payloads:
            for picture in fetched(pictures):
                shard.add(picture.row, picture.pixels, picture.kept)
        shard.encode_rest()
        return lambda: shard.write(folder, form.details(shard))

    return encode
