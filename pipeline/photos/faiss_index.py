"""The index over a bank's pooled vectors: exact while small, inverted lists in half precision above.

Vectors are normalised, so the inner product is the cosine. Inverted lists lie in segments, a file each, of crops that
follow each other; all have the centres that the first was trained with. A bank that has grown gets one more segment,
which takes in those before it that are no larger, so that they stay few; a bank that has doubled is trained and indexed
anew. Segments are built one by one and searched by memory map. How many lists a search visits is doubled until the
measured recall is good enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dptr.cache.file_names import INDEX_FILE, index_file, is_index_file
from dptr.cache.progress import note
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.lock import locked
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.orp import OrpBank

#: Below this many crops an exact search takes seconds for a whole prompt store.
FLAT_BELOW = 50_000
#: Most crops of a segment when a bank is indexed as a whole: what is held in memory meanwhile.
SEGMENT_ROWS = 1 << 20

TARGET_RECALL = 0.99
RECALL_AT = 10
_SAMPLE = 256
_TRAINING_POINTS_PER_LIST = 64
_GROWN_TOO_FAR = 2.0
_MEASURED_AGAIN = 1.1


@dataclass(frozen=True)
class CropIndex:
    """Segments of an index, and the row of the bank that each begins with."""

    segments: Sequence[Any]
    first_rows: Sequence[int]

    @property
    def lists(self) -> int:
        """Inverted lists of each segment; 0 for an exact index."""
        return int(getattr(self.segments[0], "nlist", 0))

    def search(self, queries: NDArray[np.float32], k: int, probes: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return cosines and rows of the ``k`` nearest crops of normalised ``queries``, each of shape (queries, k)."""
        if not self.lists:
            cosines, rows = self.segments[0].search(queries, k)
            return cosines, rows
        near, lists = self.segments[0].quantizer.search(queries, probes)
        found = [self._in_segment(number, queries, k, lists, near) for number in range(len(self.segments))]
        cosines, rows = (np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True))
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(cosines, order, 1), np.take_along_axis(rows, order, 1)

    def _in_segment(
        self, number: int, queries: NDArray[np.float32], k: int, lists: NDArray[np.int64], near: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        segment = self.segments[number]
        segment.nprobe = lists.shape[1]
        cosines, rows = segment.search_preassigned(queries, k, lists, near)
        # Where the lists hold fewer than k, -1 stands for none, at the lowest cosine there can be.
        return cosines, np.where(rows < 0, rows, rows + self.first_rows[number])


def write_index(bank: OrpBank) -> None:
    """Bring the index up to all committed crops and commit it, with its parameters and its recall, in the manifest.

    Files of it that were listed and are whole are kept, as far as they go.
    """
    known = bank.manifest.details.get("index", {})
    if len(bank) < FLAT_BELOW:
        _write_flat(bank)
    elif _can_grow(bank, known):
        _grow(bank, known)
    else:
        _write_lists(bank)


def is_complete(bank: OrpBank) -> bool:
    """Return whether the index is whole and holds all crops of the bank."""
    known = bank.manifest.details.get("index", {})
    return known.get("rows") == len(bank) and _is_whole(bank, known)


def open_index(bank: OrpBank) -> CropIndex:
    """Open a bank's committed index by memory map; what is missing or damaged of it is built again from the crops.

    Raises:
        UserError: it has to be built, and another process writes the bank.
    """
    if not is_complete(bank):
        note(f"{bank.folder / INDEX_FILE} is missing, damaged or out of date: building it again")
        with locked(bank.folder):
            bank.manifest = Manifest.load(bank.folder, "orp")
            write_index(bank)
    return _opened(bank, _sizes(bank.manifest.details["index"]))


def search(
    index: CropIndex, queries: NDArray[np.float32], k: int, probes: int
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return cosines and crop row numbers of the ``k`` nearest crops, each of shape (queries, k), nearest first.

    Args:
        index: from :func:`open_index`.
        queries: pooled vectors, not necessarily normalised, shape (queries, dim).
        k: neighbours per query.
        probes: lists to visit; without meaning for an exact index.
    """
    return index.search(normalized(queries), k, probes)


def choose_probes(index: CropIndex, bank: OrpBank, queries: NDArray[np.float32], probes: int = 1) -> tuple[int, float]:
    """Return how many lists must be visited for ``TARGET_RECALL`` on ``queries`` (queries, dim), and the recall.

    ``probes`` are tried first.
    """
    if not index.lists:
        return 1, 1.0
    k = min(RECALL_AT, len(bank))
    ground_truth = exact_neighbours(queries, _blocks(bank), k)
    while True:
        found = search(index, queries, k, probes)[1]
        recall = float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(found, ground_truth, strict=True)]))
        if recall >= TARGET_RECALL or probes >= index.lists:
            return probes, round(recall, 4)
        probes = min(2 * probes, index.lists)


def _write_flat(bank: OrpBank) -> None:
    import faiss

    index: Any = faiss.IndexFlatIP(bank.pooled(0).shape[1])
    for block in _blocks(bank):
        index.add(block)
    _withdraw(bank)
    _write(bank, index, INDEX_FILE)
    _commit(bank, [len(bank)], {"kind": "Flat", "lists": 0, "probes": 1, f"recall_at_{RECALL_AT}": 1.0})


def _write_lists(bank: OrpBank) -> None:
    """Train centres and index all crops."""
    import faiss

    dim, lists = bank.pooled(0).shape[1], _lists_for(len(bank))
    trained = _empty(faiss.IndexFlatIP(dim), lists)
    trained.train(_training_vectors(bank, lists * _TRAINING_POINTS_PER_LIST))
    sizes: list[int] = []
    _withdraw(bank)
    while sum(sizes) < len(bank):
        sizes.append(min(SEGMENT_ROWS, len(bank) - sum(sizes)))
        _add_segment(bank, trained.quantizer, lists, sizes)
    _commit_lists(bank, sizes, {"lists": lists, "trained_on": len(bank)})


def _can_grow(bank: OrpBank, known: dict[str, Any]) -> bool:
    """Return whether the index that is there needs no more than what was added to the bank."""
    if not known.get("lists") or not _is_whole(bank, known):
        return False
    indexed: int = known["rows"]
    return indexed <= len(bank) < _GROWN_TOO_FAR * int(known["trained_on"])


def _is_whole(bank: OrpBank, known: dict[str, Any]) -> bool:
    return all(bank.manifest.is_intact(bank.folder, name) for name in _files(_sizes(known)))


def _grow(bank: OrpBank, known: dict[str, Any]) -> None:
    """Index the crops that were added, together with segments before them that are no larger."""
    sizes = _sizes(known)
    size = len(bank) - sum(sizes)
    trained = _opened(bank, sizes[:1]).segments[0]
    while len(sizes) > 1 and sizes[-1] <= size:
        size += sizes.pop()
    if size:
        sizes.append(size)
        _add_segment(bank, trained.quantizer, known["lists"], sizes)
    _commit_lists(bank, sizes, known)


def _add_segment(bank: OrpBank, quantizer: Any, lists: int, sizes: Sequence[int]) -> None:
    """Write the last of segments of these sizes."""
    index = _empty(quantizer, lists)
    for block in _blocks(bank, sum(sizes[:-1]), sum(sizes)):
        if not index.is_trained:
            index.train(block)  # the centres are there: nothing is learnt
        index.add(block)
    _write(bank, index, _files(sizes)[-1])


def _empty(quantizer: Any, lists: int) -> Any:
    import faiss

    return faiss.IndexIVFScalarQuantizer(
        quantizer, quantizer.d, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )


def _withdraw(bank: OrpBank) -> None:
    """List the index no longer before it is replaced: a kill meanwhile must not leave a manifest that is wrong."""
    bank.manifest.withdraw_files(bank.folder, *filter(is_index_file, list(bank.manifest.files)))


def _write(bank: OrpBank, index: Any, name: str) -> None:
    import faiss

    with atomic_path(bank.folder / name) as path:
        faiss.write_index(index, str(path))


def _commit_lists(bank: OrpBank, sizes: Sequence[int], known: dict[str, Any]) -> None:
    """Commit segments; recall is measured again when the bank has grown by a tenth since it was."""
    described = {**known, "kind": "IVF,SQfp16", "segments": list(sizes)}
    if len(bank) >= _MEASURED_AGAIN * known.get("recall_of", 0):
        index = _opened(bank, sizes)
        probes, recall = choose_probes(index, bank, _own_queries(bank), known.get("probes", 1))
        described |= {"probes": probes, f"recall_at_{RECALL_AT}": recall, "recall_of": len(bank)}
    _commit(bank, sizes, described)


def _commit(bank: OrpBank, sizes: Sequence[int], described: dict[str, Any]) -> None:
    manifest, kept = bank.manifest, _files(sizes)
    manifest.details["index"] = {**described, "rows": len(bank), "recall_queries": "the bank's own vectors"}
    manifest.files = {name: record for name, record in manifest.files.items() if not is_index_file(name)}
    manifest.commit_files(bank.folder, *kept)
    for path in bank.folder.iterdir():
        if is_index_file(path.name) and path.name not in kept:
            path.unlink()


def _opened(bank: OrpBank, sizes: Sequence[int]) -> CropIndex:
    import faiss

    segments = [faiss.read_index(str(bank.folder / name), faiss.IO_FLAG_MMAP_IFC) for name in _files(sizes)]
    return CropIndex(segments, [sum(sizes[:number]) for number in range(len(sizes))])


def _sizes(known: dict[str, Any]) -> list[int]:
    """Return how many crops each segment has; an exact index is one."""
    return list(known.get("segments", [known.get("rows", 0)]))


def _files(sizes: Sequence[int]) -> list[str]:
    ends = np.cumsum(sizes).tolist()
    return [index_file(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _lists_for(rows: int) -> int:
    # FAISS advises 4 to 16 times the square root; a power of two between.
    return 1 << int(np.floor(np.log2(8 * rows**0.5)))


def _blocks(bank: OrpBank, first: int = 0, end: int | None = None) -> Iterable[NDArray[np.float32]]:
    """Yield the pooled vectors of rows ``first … end - 1``, of length one, by shards, each of shape (rows, dim)."""
    start = 0
    for number, shard in enumerate(bank.manifest.shards):
        here = slice(max(0, first - start), None if end is None else max(0, end - start))
        if first < start + shard.rows and (end is None or start < end):
            yield normalized(bank.pooled(number)[here])
        start += shard.rows


def _training_vectors(bank: OrpBank, count: int) -> NDArray[np.float32]:
    share = min(1.0, count / len(bank))
    generator = np.random.default_rng(0)
    return np.concatenate([block[generator.random(len(block)) < share] for block in _blocks(bank)])


def _own_queries(bank: OrpBank) -> NDArray[np.float32]:
    vectors = _training_vectors(bank, 4 * _SAMPLE)
    return vectors[:: max(1, len(vectors) // _SAMPLE)][:_SAMPLE]


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
