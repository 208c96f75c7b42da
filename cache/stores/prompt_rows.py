"""Labels of a prompt store's rows with their lengths, counts and hashes, in one mapped file for training.

The catalogues hold the same in one compressed file a shard. This file is derived from them when a store is finished,
and again if it is missing or has fewer rows. Except for the hash check, the time to open it does not depend on the
number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dptr.cache.errors import DamagedStore
from dptr.cache.file_names import ROWS_FILE
from dptr.cache.progress import note
from dptr.cache.row_set import hashes_of
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.lock import locked
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.shards import MappedFile

#: Rows of a block of the file, as a power of two: a row's block is found by a shift.
_BLOCK_BITS = 20
#: Each row touches a page, and the kernel maps neighbouring pages, which count as this process's memory.
_ROWS_BETWEEN_RELEASES = 1 << 13
#: Columns copied from catalogues if all have them, and columns from which others are derived.
_TAKEN_OVER = ("count", "token_letters", "template")
_COLUMNS = ("label", "label_length", "source", *_TAKEN_OVER)

#: Value of the catalogue's column ``source`` for made-up words.
MADE_UP = "(made up)"


class PromptRows:
    """The mapped file: all rows, in blocks; pickled as its path.

    Raises:
        DamagedStore: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._map = MappedFile(path)
            reader = ipc.open_file(self._map.buffer)
            self._blocks = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except (OSError, pa.ArrowException) as error:
            raise DamagedStore(f"{path} cannot be read ({error})", "See `dptr verify`") from error
        self._read_since_release = 0

    def __reduce__(self) -> tuple[type[PromptRows], tuple[Path]]:
        return PromptRows, (self.path,)

    def __len__(self) -> int:
        return sum(block.num_rows for block in self._blocks)

    def column(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield a column of numbers block by block, from row 0 on, each of shape (rows,), without a copy.

        Pages are released after use: a pass over all rows leaves nothing in memory.
        """
        for block in self._blocks:
            yield block.column(name).to_numpy(zero_copy_only=True)
            self.release()

    def labels(self) -> Iterator[pa.Array]:
        """Yield the labels block by block, from row 0 on."""
        for block in self._blocks:
            yield block.column("label")
            self.release()

    def numbers_of(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return a column of numbers at ``rows``, of the same shape."""
        self._release_now_and_then(rows.size)
        blocks, within = rows >> _BLOCK_BITS, rows & ((1 << _BLOCK_BITS) - 1)
        found = np.empty(rows.shape, self._blocks[0].column(name).type.to_pandas_dtype())
        for number in np.unique(blocks).tolist():
            chosen = blocks == number
            found[chosen] = self._blocks[number].column(name).to_numpy(zero_copy_only=True)[within[chosen]]
        return found

    def labels_of(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the labels of ``rows``, shape (batch,), in order."""
        self._release_now_and_then(len(rows))
        return [self._at("label", row).as_py() for row in rows.tolist()]

    def token_letters_of(self, rows: NDArray[np.int64]) -> list[NDArray[np.int16]]:
        """Return for each of ``rows`` the number of label characters that each token covers."""
        return [self._at("token_letters", row).values.to_numpy() for row in rows.tolist()]

    def release(self) -> None:
        """Release mapped pages; they are read again when touched."""
        self._map.release()
        self._read_since_release = 0

    def _release_now_and_then(self, rows: int) -> None:
        self._read_since_release += rows
        if self._read_since_release > _ROWS_BETWEEN_RELEASES:
            self.release()

    def _at(self, name: str, row: int) -> pa.Scalar:
        return self._blocks[row >> _BLOCK_BITS].column(name)[row & ((1 << _BLOCK_BITS) - 1)]


def open_rows(folder: Path, manifest: Manifest) -> PromptRows:
    """Open a store's rows; a file that is missing or has fewer rows is written and listed in the manifest.

    Raises:
        UserError: it is missing, and another process writes the store, or it cannot be written.
        DamagedStore: it is not what was committed.
    """
    rows = _fitting(folder, manifest)
    if rows is not None:
        return rows
    note(f"indexing labels and lengths of {folder} in {ROWS_FILE}")
    with locked(folder):
        current = Manifest.load(folder, manifest.kind)
        write_rows(folder, current)
    manifest.files[ROWS_FILE] = current.files[ROWS_FILE]
    return PromptRows(folder / ROWS_FILE)


def write_rows(folder: Path, manifest: Manifest) -> None:
    """Write the file of a store's rows and commit it if it is missing; the caller holds the store's lock."""
    if _fitting(folder, manifest) is None:
        manifest.withdraw_files(folder, ROWS_FILE)
        with atomic_path(folder / ROWS_FILE) as path:
            write_rows_file(path, folder, manifest)
        manifest.commit_files(folder, ROWS_FILE)


def write_rows_file(path: Path, folder: Path, manifest: Manifest) -> None:
    """Write the rows of the store in ``folder`` to ``path``; the same catalogues give the same bytes.

    Raises:
        DamagedStore: a catalogue is damaged.
    """
    catalogues = manifest.catalogues(folder)
    named = [set(pq.read_schema(catalogue).names) for catalogue in catalogues]
    columns = [name for name in _COLUMNS if all(name in names for names in named)]
    blocks = map(_block, _in_blocks(catalogues, columns))
    first = next(blocks)
    with pa.OSFile(str(path), "wb") as sink, ipc.new_file(sink, first.schema) as writer:
        writer.write_batch(first)
        for block in blocks:
            writer.write_batch(block)


def _fitting(folder: Path, manifest: Manifest) -> PromptRows | None:
    path = folder / ROWS_FILE
    if ROWS_FILE not in manifest.files or not path.is_file():
        return None
    rows = PromptRows(manifest.checked(folder, ROWS_FILE))
    return rows if len(rows) == manifest.rows else None


def _in_blocks(catalogues: list[Path], columns: list[str]) -> Iterator[pa.Table]:
    """Yield the rows of all catalogues in tables of a block's rows; the last one has what is left."""
    waiting: list[pa.Table] = []
    size = 1 << _BLOCK_BITS
    for catalogue in catalogues:
        waiting.append(pq.read_table(catalogue, columns=columns))
        while sum(map(len, waiting)) >= size:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, size)
            waiting = [whole.slice(size)]
    if rest := pa.concat_tables(waiting):
        yield rest


def _block(table: pa.Table) -> pa.RecordBatch:
    whole = {name: pa.concat_arrays(table[name].chunks) for name in table.column_names}
    labels = whole["label"].cast(pa.string())
    source = whole.get("source", pa.nulls(len(table), pa.string()))
    columns = {
        "label": labels,
        "label_length": whole["label_length"].cast(pa.int16()),
        "label_hash": pa.array(hashes_of(labels)),
        # A byte each, which NumPy reads without a copy.
        "made_up": pc.fill_null(pc.equal(source, MADE_UP), False).cast(pa.uint8()),
        **{name: whole[name] for name in _TAKEN_OVER if name in whole},
    }
    return pa.RecordBatch.from_pydict(columns)
