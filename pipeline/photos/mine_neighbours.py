"""Each prompt's nearest crops, searched once and kept beside the prompt store.

Prompts are elsewhere in CLIP's space than photos, so recall is measured on prompts, and the number of lists to visit
is chosen for them. Every prompt shard's result is a file of its own until all are there: a killed run goes on.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dptr.cache.errors import UserError
from dptr.cache.file_names import NEIGHBOURS_ARRAY, NEIGHBOURS_TABLE
from dptr.cache.progress import note, progress
from dptr.cache.stores.files import atomic_path, write_json
from dptr.cache.stores.lock import locked
from dptr.cache.stores.manifest import Manifest, require_same_encoder
from dptr.cache.stores.neighbours import DETAIL, TABLE_SCHEMA, made_from, why_outdated
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import EmbeddingsReader
from dptr.pipeline.photos import faiss_index

_WORK_FOLDER = ".neighbours"
_SAMPLE = 256
_QUERIES_AT_ONCE = 4096


@dataclass(frozen=True)
class NeighboursSummary:
    """What a run did.

    Attributes:
        out: the prompt store's folder, where the neighbours are written.
        rows: prompts with neighbours.
        computed: prompts searched by this run.
        k: neighbours of each.
        probes: index lists visited per search (1 for an exact index).
        recall: of the search, measured on a sample of the prompts.
        seconds: the whole run.
    """

    out: Path
    rows: int
    computed: int
    k: int
    probes: int
    recall: float
    seconds: float


def mine_neighbours(prompts: Path, bank: Path, k: int = 32) -> NeighboursSummary:
    """Find the ``k`` nearest crops of every prompt and commit them in the prompt store.

    Args:
        prompts: a prompt store's folder.
        bank: an ORP bank's folder.
        k: neighbours of each prompt.

    Raises:
        UserError: a store is missing, or the bank has fewer than ``k`` crops.
        DamagedStore: the stores come from different encoders, or one is damaged.
    """
    started = time.monotonic()
    store, crops = PromptStore(prompts), OrpBank(bank)
    require_same_encoder(store.manifest, crops.manifest)
    if not 1 <= k <= len(crops):
        raise UserError(f"k = {k} neighbours of {len(crops)} crops are impossible", f"Use 1 to {len(crops)}")
    computed = 0
    if not _is_mined(store, crops, k):
        with locked(prompts):
            store = PromptStore(prompts)
            # Another process may have finished between the look above and the lock.
            if not _is_mined(store, crops, k):
                computed = _mine(store, crops, k)
    elif (prompts / _WORK_FOLDER).exists():
        # A run was killed between its commit and the end of its tidying up.
        with locked(prompts):
            shutil.rmtree(prompts / _WORK_FOLDER, ignore_errors=True)
    mined = store.manifest.details[DETAIL]
    return NeighboursSummary(
        prompts, len(store), computed, k, mined["probes"], mined["recall"], time.monotonic() - started
    )


def _is_mined(store: PromptStore, bank: OrpBank, k: int) -> bool:
    if why_outdated(store.manifest, bank.manifest, k):
        return False
    whole = all(store.manifest.is_intact(store.folder, name) for name in (NEIGHBOURS_TABLE, NEIGHBOURS_ARRAY))
    if not whole:
        note(f"the neighbours in {store.folder} are missing or damaged: searching again")
    return whole


def _mine(store: PromptStore, bank: OrpBank, k: int) -> int:
    reader = EmbeddingsReader(store.folder, store.manifest.shards)
    index = faiss_index.open_index(bank)
    probes, recall = faiss_index.choose_probes(index, bank, _sample(reader, len(store)))
    details = {**made_from(store.manifest, bank.manifest), "k": k, "probes": probes, "recall": recall}
    work = _work_folder(store.folder, details)
    computed = 0
    missing = [number for number in range(len(store.manifest.shards)) if not _part(work, number).is_file()]
    done = len(store) - sum(store.manifest.shards[number].rows for number in missing)
    with progress("nearest crops of prompts", len(store), "prompts", done) as bar:
        for number in missing:
            pooled = reader.file(number).pooled
            found = [
                faiss_index.search(index, pooled[first : first + _QUERIES_AT_ONCE].astype(np.float32), k, probes)
                for first in range(0, len(pooled), _QUERIES_AT_ONCE)
            ]
            cosines, crops = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
            with atomic_path(_part(work, number)) as path, path.open("wb") as stream:
                np.savez(stream, cosines=cosines.astype(np.float32), crops=crops.astype(np.int32))
            computed += len(pooled)
            bar.advance(len(pooled))
    _commit(store, work, details)
    return computed


def _sample(reader: EmbeddingsReader, rows: int) -> NDArray[np.float32]:
    """Return the pooled vectors of prompts drawn from all shards, shape (at most 256, dim)."""
    chosen = np.sort(np.random.default_rng(0).choice(rows, min(_SAMPLE, rows), replace=False))
    return reader.gather(chosen).pooled


def _work_folder(folder: Path, details: dict[str, Any]) -> Path:
    """Return the folder of unfinished work, emptied when it belongs to other stores or another k."""
    work = folder / _WORK_FOLDER
    described = work / "made_from.json"
    if not described.is_file() or json.loads(described.read_text(encoding="utf-8")) != details:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        write_json(described, details)
    return work


def _part(work: Path, shard: int) -> Path:
    return work / f"part-{shard:05d}.npz"


def _commit(store: PromptStore, work: Path, details: dict[str, Any]) -> None:
    # Unlisted first: a kill while the files are replaced must not leave a manifest that calls them damaged.
    manifest = Manifest.load(store.folder, "prompts")
    manifest.details.pop(DETAIL, None)
    manifest.withdraw_files(store.folder, NEIGHBOURS_TABLE, NEIGHBOURS_ARRAY)
    _write_table(store.folder / NEIGHBOURS_TABLE, manifest, work)
    _write_array(store.folder / NEIGHBOURS_ARRAY, manifest, work, details["k"])
    manifest.details[DETAIL] = details
    manifest.commit_files(store.folder, NEIGHBOURS_TABLE, NEIGHBOURS_ARRAY)
    store.manifest = manifest
    shutil.rmtree(work)


def _parts(manifest: Manifest, work: Path) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    for number in range(len(manifest.shards)):
        with np.load(_part(work, number)) as part:
            yield part["crops"], part["cosines"]


def _write_table(path: Path, manifest: Manifest, work: Path) -> None:
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, TABLE_SCHEMA, compression="zstd") as writer:
        for shard, (crops, cosines) in zip(manifest.shards, _parts(manifest, work), strict=True):
            ids = (
                pq.read_table(manifest.checked(path.parent, shard.catalogue), columns=["id"]).column(0).combine_chunks()
            )
            columns = [ids, _lists(crops.astype(np.int64)), _lists(cosines)]
            writer.write_table(pa.table(columns, TABLE_SCHEMA))


def _lists(matrix: NDArray[Any]) -> pa.ListArray:
    rows, width = matrix.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), pa.array(matrix.reshape(-1)))


def _write_array(path: Path, manifest: Manifest, work: Path, k: int) -> None:
    with atomic_path(path) as temporary:
        array = np.lib.format.open_memmap(temporary, "w+", np.int32, (manifest.rows, k), version=(1, 0))
        first = 0
        for crops, _ in _parts(manifest, work):
            array[first : first + len(crops)] = crops
            first += len(crops)
        array.flush()
