"""The FAISS index over a bank's pooled vectors: exact while small, inverted lists in half precision above.

Vectors are normalised, so the inner product is the cosine. The index is derived from the committed crops: a bank that
has grown is indexed anew, which takes minutes for a million crops. A search maps it into memory. How many lists are
visited is doubled until the measured recall is good enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptr.cache.file_names import INDEX_FILE
from dptr.cache.progress import note
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.lock import locked
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.orp import OrpBank

#: Below this many crops an exact search takes seconds for a whole prompt store.
FLAT_BELOW = 50_000
TARGET_RECALL = 0.99
RECALL_AT = 10
_SAMPLE = 256
_TRAINING_POINTS_PER_LIST = 64


def write_index(bank: OrpBank) -> None:
    """Index all committed crops and commit the index, with its parameters and its recall, in the manifest."""
    import faiss

    dim = bank.pooled(0).shape[1]
    index: Any = faiss.IndexFlatIP(dim)
    if len(bank) >= FLAT_BELOW:
        lists = _lists_for(len(bank))
        kind = (faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexIVFScalarQuantizer(index, dim, lists, *kind)
        index.train(_training_vectors(bank, lists * _TRAINING_POINTS_PER_LIST))
    for block in _blocks(bank):
        index.add(block)
    probes, recall = choose_probes(index, bank, _own_queries(bank))
    # Unlisted before it is replaced: a kill meanwhile must leave a consistent manifest.
    bank.manifest.withdraw_files(bank.folder, INDEX_FILE)
    with atomic_path(bank.folder / INDEX_FILE) as path:
        faiss.write_index(index, str(path))
    bank.manifest.details["index"] = {
        "kind": "IVF,SQfp16" if _lists(index) else "Flat",
        "lists": _lists(index),
        "probes": probes,
        f"recall_at_{RECALL_AT}": recall,
        "recall_queries": "the bank's own vectors",
        "rows": len(bank),
    }
    bank.manifest.commit_files(bank.folder, INDEX_FILE)


def is_complete(bank: OrpBank) -> bool:
    """Return whether the index is whole and holds all crops of the bank."""
    indexed = bank.manifest.details.get("index", {}).get("rows")
    return indexed == len(bank) and bank.manifest.is_intact(bank.folder, INDEX_FILE)


def open_index(bank: OrpBank) -> Any:
    """Open a bank's committed index by memory map; a missing or damaged one is built again from the crops.

    Raises:
        UserError: it has to be built, and another process writes the bank.
    """
    import faiss

    if not is_complete(bank):
        note(f"{bank.folder / INDEX_FILE} is missing, damaged or out of date: building it again")
        with locked(bank.folder):
            bank.manifest = Manifest.load(bank.folder, "orp")
            write_index(bank)
    return faiss.read_index(str(bank.folder / INDEX_FILE), faiss.IO_FLAG_MMAP_IFC)


def search(index: Any, queries: NDArray[np.float32], k: int, probes: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return cosines and crop row numbers of the ``k`` nearest crops, each of shape (queries, k), nearest first.

    Args:
        index: from :func:`open_index`.
        queries: pooled vectors, not necessarily normalised, shape (queries, dim).
        k: neighbours per query.
        probes: lists to visit; without meaning for an exact index.
    """
    if _lists(index):
        index.nprobe = probes
    cosines, rows = index.search(normalized(queries), k)
    return cosines, rows


def choose_probes(index: Any, bank: OrpBank, queries: NDArray[np.float32]) -> tuple[int, float]:
    """Return how many lists must be visited for ``TARGET_RECALL`` on ``queries`` (queries, dim), and the recall."""
    if not _lists(index):
        return 1, 1.0
    k, probes = min(RECALL_AT, len(bank)), 1
    ground_truth = exact_neighbours(queries, _blocks(bank), k)
    while True:
        found = search(index, queries, k, probes)[1]
        recall = float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, ground_truth, strict=True)]))
        if recall >= TARGET_RECALL or probes >= _lists(index):
            return probes, round(recall, 4)
        probes *= 2


def exact_neighbours(queries: NDArray[np.float32], blocks: Iterable[NDArray[np.float32]], k: int) -> NDArray[np.int64]:
    """Return each query's ``k`` nearest rows among all blocks, by comparing with every row, shape (queries, k)."""
    import faiss

    queries, first = normalized(queries), 0
    best = faiss.ResultHeap(len(queries), k, keep_max=True)
    for block in blocks:
        cosines, rows = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        best.add_result(cosines, rows + first)
        first += len(block)
    best.finalize()
    return np.asarray(best.I)


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows of ``vectors``, shape (rows, dim), at length one, float32; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def _lists(index: Any) -> int:
    """Return how many inverted lists an index has; 0 for an exact one."""
    return int(getattr(index, "nlist", 0))


def _lists_for(rows: int) -> int:
    # FAISS advises 4 to 16 times the square root; a power of two between.
    return 1 << int(np.floor(np.log2(8 * rows**0.5)))


def _blocks(bank: OrpBank) -> Iterable[NDArray[np.float32]]:
    """Yield the pooled vectors, of length one, by shards, each of shape (rows, dim)."""
    return (normalized(bank.pooled(number)) for number in range(len(bank.manifest.shards)))


def _training_vectors(bank: OrpBank, count: int) -> NDArray[np.float32]:
    share = min(1.0, count / len(bank))
    generator = np.random.default_rng(0)
    return np.concatenate([block[generator.random(len(block)) < share] for block in _blocks(bank)])


def _own_queries(bank: OrpBank) -> NDArray[np.float32]:
    vectors = _training_vectors(bank, 4 * _SAMPLE)
    return vectors[:: max(1, len(vectors) // _SAMPLE)][:_SAMPLE]
