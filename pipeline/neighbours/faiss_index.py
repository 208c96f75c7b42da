"""The index over a bank's pooled vectors: exact while small, inverted lists in half precision above.

Vectors are normalised, so the inner product is the cosine. The whole index is built again when a bank has grown: that
takes seconds where the states took hours, and the same bank always has the same index. How many lists a search visits
is doubled until the measured recall is good enough.
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
    """Build the index of all committed crops and commit it, with its parameters and its recall, in the manifest."""
    import faiss

    dim = bank.pooled(0).shape[1]
    lists = 0 if len(bank) < FLAT_BELOW else _lists_for(len(bank))
    index: Any
    if lists:
        quantizer = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        index.train(_training_vectors(bank, lists * _TRAINING_POINTS_PER_LIST))
    else:
        index = faiss.IndexFlatIP(dim)
    for block in _blocks(bank):
        index.add(block)
    probes, recall = choose_probes(index, bank, _own_queries(bank))
    with atomic_path(bank.folder / INDEX_FILE) as path:
        faiss.write_index(index, str(path))
    bank.manifest.details["index"] = {
        "kind": "IVF,SQfp16" if lists else "Flat",
        "rows": len(bank),
        "lists": lists,
        "probes": probes,
        f"recall_at_{RECALL_AT}": recall,
        "recall_queries": "the bank's own vectors",
    }
    bank.manifest.commit_files(bank.folder, INDEX_FILE)


def open_index(bank: OrpBank) -> Any:
    """Open a bank's committed index by memory map; one that is missing or damaged is built again from the crops.

    Raises:
        UserError: it has to be built, and another process writes the bank.
    """
    import faiss

    if not bank.manifest.is_intact(bank.folder, INDEX_FILE):
        note(f"{bank.folder / INDEX_FILE} is missing or damaged; it is built again")
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
    if hasattr(index, "nprobe"):
        index.nprobe = probes
    cosines, crops = index.search(normalized(queries), k)
    return cosines, crops


def choose_probes(index: Any, bank: OrpBank, queries: NDArray[np.float32]) -> tuple[int, float]:
    """Return how many lists must be visited for ``TARGET_RECALL`` on ``queries`` (queries, dim), and the recall."""
    if not hasattr(index, "nprobe"):
        return 1, 1.0
    k = min(RECALL_AT, len(bank))
    truth = exact_neighbours(queries, _blocks(bank), k)
    probes = 1
    while True:
        found = search(index, queries, k, probes)[1]
        recall = float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, truth, strict=True)]))
        if recall >= TARGET_RECALL or probes >= index.nlist:
            return probes, round(recall, 4)
        probes = min(2 * probes, index.nlist)


def exact_neighbours(queries: NDArray[np.float32], blocks: Iterable[NDArray[np.float32]], k: int) -> NDArray[np.int64]:
    """Return each query's ``k`` nearest rows among all blocks, by comparing with every row, shape (queries, k)."""
    queries = normalized(queries)
    best = np.full((len(queries), 0), -np.inf, np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    first = 0
    for block in blocks:
        best = np.concatenate([best, queries @ block.T], axis=1)
        numbers = np.arange(first, first + len(block), dtype=np.int64)
        rows = np.concatenate([rows, np.broadcast_to(numbers, (len(queries), len(block)))], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, rows = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1)
        first += len(block)
    return rows


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows of ``vectors``, shape (rows, dim), at length one, float32; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


def _lists_for(rows: int) -> int:
    # FAISS advises 4 to 16 times the square root; a power of two between.
    return 1 << int(np.floor(np.log2(8 * rows**0.5)))


def _blocks(bank: OrpBank) -> Iterable[NDArray[np.float32]]:
    return (normalized(bank.pooled(shard)) for shard in range(len(bank.manifest.shards)))


def _training_vectors(bank: OrpBank, count: int) -> NDArray[np.float32]:
    share = min(1.0, count / len(bank))
    generator = np.random.default_rng(0)
    return np.concatenate([block[generator.random(len(block)) < share] for block in _blocks(bank)])


def _own_queries(bank: OrpBank) -> NDArray[np.float32]:
    vectors = _training_vectors(bank, 4 * _SAMPLE)
    return vectors[:: max(1, len(vectors) // _SAMPLE)][:_SAMPLE]
