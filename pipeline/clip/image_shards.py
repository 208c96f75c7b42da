"""Shards of image embeddings, made of groups of pictures that are never split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
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
from dptr.pipeline.executors.store_builder import ShardToMake


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
    """Common settings of a store's shards.

    Attributes:
        schema: of the catalogue. rows: pictures of a full shard. tokens: kept of each picture. dtype: of the
            embeddings.
        batch: pictures of a forward pass.
    """

    schema: pa.Schema
    rows: int
    tokens: int
    dtype: EmbeddingsDtype
    batch: int


def shard_worker(
    folder: Path, encoder: ImageEncoder, clip: str, precision: Precision, form: ShardForm
) -> Worker[Shard]:
    """Return the worker that makes shards of groups of pictures in ``folder``, with ``encoder`` in this process."""
    return Worker(_work_of(folder, encoder, form), _make_work, (folder.absolute(), clip, precision, form))


def _make_work(folder: Path, clip: str, precision: Precision, form: ShardForm) -> Work[Shard]:
    return _work_of(folder, ImageEncoder(load_clip(clip, precision, device_of_worker())), form)


def _work_of(folder: Path, encoder: ImageEncoder, form: ShardForm) -> Work[Shard]:
    # Rounded to the stored format at once where that is possible: a shard in memory is then half as large.
    held = np.float16 if form.dtype == "float16" else np.float32

    def encode(to_make: ShardToMake) -> Callable[[], Shard]:
        number, first_id = to_make.place
        tokens: NDArray[np.floating] = np.empty((form.rows, form.tokens, encoder.dim), held)
        pooled = np.empty((form.rows, encoder.dim), np.float32)
        rows: list[dict[str, Any]] = []
        pictures = (picture for group in to_make.payloads for picture in fetched(group))
        # A batch never spans shards, so that a shard's bytes do not depend on earlier ones.
        while batch := list(islice(pictures, form.batch)):
            here = slice(len(rows), len(rows) + len(batch))
            kept = np.stack([picture.kept for picture in batch])
            found, pooled[here] = encoder.encode(np.stack([picture.pixels for picture in batch]))
            with np.errstate(over="ignore"):
                tokens[here] = np.take_along_axis(found, kept[:, :, None], axis=1)
            if not np.isfinite(tokens[here]).all():
                raise UserError(
                    f"the image encoder gives embeddings that {form.dtype} cannot hold", "Use --dtype float32"
                )
            rows += [{"id": first_id + here.start + place, **picture.row} for place, picture in enumerate(batch)]

        def write() -> Shard:
            count = len(rows)
            lengths = np.full(count, form.tokens, np.int64)
            embeddings = Embeddings(tokens[:count].reshape(-1, encoder.dim), lengths, pooled[:count])
            return write_shard(folder, number, pa.Table.from_pylist(rows, form.schema), embeddings, form.dtype, {})

        return write

    return encode
