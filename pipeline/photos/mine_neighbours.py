"""Each prompt's nearest crops, searched once and kept beside the prompt store.

Text and image embeddings are in different regions of CLIP's space, so recall and the number of lists to visit are
measured on prompts. A killed run leaves earlier results unchanged, and starts again from the first prompt.
"""

from __future__ import annotations

import time
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
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.lock import locked
from dptr.cache.stores.manifest import require_same_encoder
from dptr.cache.stores.neighbours import DETAIL, TABLE_SCHEMA, made_from, why_outdated
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import EmbeddingsReader
from dptr.pipeline.photos import faiss_index

_SAMPLE = 256
_QUERIES_AT_ONCE = 4096


@dataclass(frozen=True)
class NeighboursSummary:
    """Result of a run.

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
            # Another process may have finished between the check above and the lock.
            if not _is_mined(store, crops, k):
                _mine(store, crops, k)
                computed = len(store)
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


def _mine(store: PromptStore, bank: OrpBank, k: int) -> None:
    manifest, folder = store.manifest, store.folder
    reader = EmbeddingsReader(folder, manifest.shards)
    index = faiss_index.open_index(bank)
    probes, recall = faiss_index.choose_probes(index, bank, _sample(reader, len(store)))
    with (
        atomic_path(folder / NEIGHBOURS_TABLE) as table,
        atomic_path(folder / NEIGHBOURS_ARRAY) as array,
        pq.ParquetWriter(table, TABLE_SCHEMA, compression="zstd") as writer,
        progress("nearest crops of prompts", len(store), "prompts") as bar,
    ):
        nearest = np.lib.format.open_memmap(array, "w+", np.int32, (len(store), k), version=(1, 0))
        first = 0
        for number, shard in enumerate(manifest.shards):
            pooled = reader.file(number).pooled
            found = [
                faiss_index.search(index, pooled[start : start + _QUERIES_AT_ONCE].astype(np.float32), k, probes)
                for start in range(0, len(pooled), _QUERIES_AT_ONCE)
            ]
            cosines, crops = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
            ids = pq.read_table(manifest.checked(folder, shard.catalogue), columns=["id"]).column(0).combine_chunks()
            writer.write_table(pa.table([ids, _lists(crops), _lists(cosines.astype(np.float32))], TABLE_SCHEMA))
            nearest[first : first + len(crops)] = crops
            first += len(crops)
            bar.advance(len(crops))
        nearest.flush()
        # Unlisted first: a kill while the files are replaced must not leave a manifest that calls them damaged.
        manifest.details.pop(DETAIL, None)
        manifest.withdraw_files(folder, NEIGHBOURS_TABLE, NEIGHBOURS_ARRAY)
    manifest.details[DETAIL] = {**made_from(manifest, bank.manifest), "k": k, "probes": probes, "recall": recall}
    manifest.commit_files(folder, NEIGHBOURS_TABLE, NEIGHBOURS_ARRAY)


def _sample(reader: EmbeddingsReader, rows: int) -> NDArray[np.float32]:
    """Return the pooled vectors of prompts drawn from all shards, shape (at most 256, dim)."""
    chosen = np.sort(np.random.default_rng(0).choice(rows, min(_SAMPLE, rows), replace=False))
    return reader.gather(chosen).pooled


def _lists(matrix: NDArray[Any]) -> pa.ListArray:
    rows, width = matrix.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * width), pa.array(matrix.reshape(-1)))
