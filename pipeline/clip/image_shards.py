"""Stores of image embeddings: inputs to shards, made of groups of pictures that are never split.

Results of workers are used in the order of the inputs, and a batch never spans shards. So a shard's bytes depend only
on inputs and settings, not on the number of workers or on interruptions.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dptr.cache.choices import EmbeddingsDtype, Precision
from dptr.cache.errors import UserError, require_at_least
from dptr.cache.file_names import QUARANTINE_FILE
from dptr.cache.progress import progress
from dptr.cache.rejections import Quarantine, example
from dptr.cache.stores.manifest import Shard, StoreKind
from dptr.cache.stores.shards import Embeddings, write_shard
from dptr.pipeline.clip.loading import ImageEncoder, load_clip
from dptr.pipeline.executors.executor import Executor, Part, Work, Worker
from dptr.pipeline.executors.ray_cluster import device_of_worker, fetched
from dptr.pipeline.executors.store_builder import Group, ShardToMake, StoreInMaking, StoreSummary


@dataclass(frozen=True, kw_only=True)
class PictureSettings:
    """Settings of a store of image embeddings.

    Attributes:
        clip: ``tiny``, a directory in transformers' format, or a hub id.
        precision: arithmetic of the image encoder. dtype: how embeddings are stored.
        seed: of all random draws.
        shard_rows: pictures per shard; a killed run loses at most one shard.
        batch: pictures per forward pass; None: what suits the device. Another may change the last bits of embeddings.
        workers: threads that read and cut pictures ahead of the model. Never changes a byte.
        max_bad: rejected inputs allowed; None allows any number.
        device: a torch device.
    """

    clip: str = "tiny"
    precision: Precision = "fp32"
    dtype: EmbeddingsDtype = "float16"
    seed: int = 0
    shard_rows: int = 1024
    batch: int | None = None
    workers: int = 1
    max_bad: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_at_least(1, shard_rows=self.shard_rows, batch=self.batch, workers=self.workers)
        # Otherwise drawing would fail for each picture, and all would be rejected.
        if not 0 <= self.seed < 1 << 64:
            raise UserError(f"seed {self.seed} is impossible", "Use 0 or any whole number below 2**64")


@dataclass(frozen=True, kw_only=True)
class PictureSummary(StoreSummary):
    """Result of a run; rows are pictures.

    Attributes:
        duplicates: inputs of this run that are the same as another one.
    """

    duplicates: int


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


class Input(NamedTuple):
    """One input that was read.

    Attributes:
        source: its file or data set. item: its name in the list of rejected inputs.
        known_by: its identity, values of columns of the catalogue; or, as text, why it is rejected.
        pictures: its pictures, for workers.
        counts: whether progress counts it.
    """

    source: str
    item: str
    known_by: tuple[str, ...] | str
    pictures: Any
    counts: bool = True


class PictureStore:
    """A store of image embeddings while it is filled.

    Args:
        out: the whole store's folder. kind: of the store. identity: of its embeddings. part: to make.
        encoder: encodes in this process.
        schema: of the catalogue. columns: of it, which identify inputs. per_input: pictures of an input.

    Attributes:
        known: identities of the inputs in the store; grows while it is filled.
        duplicates: inputs of this run that are the same as another one. quarantined: inputs rejected.

    Raises:
        UserError, DamagedStore: as of :class:`StoreInMaking`.
    """

    def __init__(
        self,
        out: Path,
        kind: StoreKind,
        identity: dict[str, Any],
        part: Part,
        encoder: ImageEncoder,
        settings: PictureSettings,
        schema: pa.Schema,
        columns: Sequence[str],
        per_input: int,
    ) -> None:
        self._encoder, self._settings, self._schema, self._per_input = encoder, settings, schema, per_input
        self.making = StoreInMaking(out, kind, identity, part)
        self.manifest, self.folder = self.making.manifest, self.making.folder
        self.known: set[tuple[str, ...]] = set()
        for catalogue in self.making.catalogues:
            table = pq.read_table(catalogue, columns=list(columns))
            self.known.update(zip(*(table[column].to_pylist() for column in columns), strict=True))
        self.batch = settings.batch or encoder.batch
        self.duplicates = self.quarantined = 0
        self._rows_before = self.manifest.rows

    def fill(
        self, read: Callable[[Quarantine], Iterable[Input]], total: int, doing: str, unit: str, executor: Executor
    ) -> None:
        """Make the shards that the store lacks.

        Args:
            read: yields all inputs in order; it may reject some in the quarantine itself.
            total: number of inputs. doing, unit: texts of the progress.
            executor: where pictures are encoded; it changes no byte.

        Raises:
            UserError: no input can be used. TooManyRejected: what was computed is kept.
        """
        rows = max(1, self._settings.shard_rows // self._per_input) * self._per_input
        with (
            self.manifest.rewriting(self.folder, QUARANTINE_FILE),
            Quarantine(self.folder / QUARANTINE_FILE) as quarantine,
            closing(self._new(read(quarantine), quarantine, total, doing, unit)) as groups,
        ):
            self.making.fill(executor, self._worker(rows), groups, rows)
            self.quarantined += quarantine.total
            self.making.finish()
        if not self.making.rows:
            rejected = self.folder / QUARANTINE_FILE
            raise UserError(
                f"none of {total:,} {unit} can be used{example(rejected)}",
                f"Use others; the reasons are in {rejected}",
            )

    def _new(
        self, inputs: Iterable[Input], quarantine: Quarantine, total: int, doing: str, unit: str
    ) -> Generator[Group, None, None]:
        """Yield the pictures of each new usable input; record rejected inputs and duplicates."""
        earlier = frozenset(self.known)
        with progress(doing, total, unit) as bar:
            for one in inputs:
                if isinstance(one.known_by, str):
                    quarantine.reject(one.source, None, one.item, one.known_by)
                    quarantine.check(self._settings.max_bad)
                elif one.known_by in self.known:
                    self.duplicates += one.known_by not in earlier
                else:
                    self.known.add(one.known_by)
                    yield Group(self._per_input, one.known_by, one.pictures)
                bar.advance(one.counts, f"{quarantine.total} quarantined" if quarantine.total else "")

    def figures(self) -> dict[str, Any]:
        """Return the figures of a :class:`PictureSummary`, without times."""
        rows = self.manifest.rows
        counted = {"computed": rows - self._rows_before, "duplicates": self.duplicates}
        return {"out": self.folder, "rows": rows, "quarantined": self.quarantined, **counted}

    def _worker(self, rows: int) -> Worker[Shard]:
        settings = self._settings
        form = _ShardForm(self._schema, rows, self.manifest.identity["tokens_per_crop"], settings.dtype, self.batch)
        here = _work_of(self.folder, self._encoder, form)
        return Worker(here, _make_work, (self.folder.absolute(), settings.clip, settings.precision, form))


@dataclass(frozen=True)
class _ShardForm:
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


def _make_work(folder: Path, clip: str, precision: Precision, form: _ShardForm) -> Work[Shard]:
    return _work_of(folder, ImageEncoder(load_clip(clip, precision, device_of_worker())), form)


def _work_of(folder: Path, encoder: ImageEncoder, form: _ShardForm) -> Work[Shard]:
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
