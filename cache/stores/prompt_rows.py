"""What training asks of every row of a prompt store, in one mapped file: labels, their lengths, counts and hashes.

Which rows are words that were made up, its schema's metadata says as ranges, since they stand in shards of their own.
The catalogues hold the same, in as many files as there are shards, to be read and unpacked as a whole. This file is
derived from them when a store is finished, and again where it is missing or of other shards; to open it costs the same
whatever the number of rows.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dptr.cache.errors import UserError
from dptr.cache.file_names import ROWS_FILE
from dptr.cache.progress import note
from dptr.cache.stores import checks
from dptr.cache.stores.files import atomic_path, scratch_folder
from dptr.cache.stores.lock import locked
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.mapped_file import MappedFile, damage_told, numbers_at, text_at
from dptr.cache.validation import hashes_of

#: Rows of a block of the file, as a power of two: a row's block is found by a shift.
_BLOCK_BITS = 20
#: Each touches a page, and the kernel maps its neighbours with it, which count as this process's memory.
_ROWS_BETWEEN_RELEASES = 1 << 13
_MADE_FROM, _MADE_UP = b"made_from", b"made_up"
_ADVICE = "`dptr verify --repair` makes it again"
#: Columns of catalogues that are taken over where every catalogue has them.
_TAKEN_OVER = ("count", "token_letters", "template")

#: Stands in the catalogue's column ``source`` where words of a corpus have their file.
MADE_UP = "(made up)"
_SOURCE = "source"

#: Of rows, in order: the first, and the one behind the last.
Ranges = list[list[int]]


class PromptRows:
    """The mapped file: all rows, in blocks; it goes to other processes by its path.

    Attributes:
        path: where it is. made_from: digest of the shards that it was made from.
        made_up: ranges of the rows that were made up.
        kept_in: a folder that goes when this process no longer needs it; None for a file in a store.
    """

    _read_since_release = 0
    kept_in: tempfile.TemporaryDirectory[str] | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        with damage_told(path, _ADVICE):
            self._map = MappedFile(path)
            self._reader = ipc.open_file(self._map.buffer)
            metadata = self._reader.schema.metadata or {}
            self.made_from = metadata.get(_MADE_FROM, b"").decode()
            self.made_up: Ranges = json.loads(metadata[_MADE_UP])
            self._blocks = [self._reader.get_batch(number) for number in range(self._reader.num_record_batches)]
            for block in self._blocks:
                block.validate()

    def __reduce__(self) -> tuple[type[PromptRows], tuple[Path]]:
        return PromptRows, (self.path,)

    def __len__(self) -> int:
        return sum(block.num_rows for block in self._blocks)

    def column(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield a column of numbers block by block, from row 0 on, each of shape (rows,), without a copy.

        Pages that were read are dropped behind it: a pass over all rows leaves nothing in memory.
        """
        for block in self._blocks:
            with damage_told(self.path, _ADVICE):
                numbers = block.column(name).to_numpy(zero_copy_only=True)
            yield numbers
            self.release()

    def labels(self) -> Iterator[pa.Array]:
        """Yield the labels block by block, from row 0 on."""
        for block in self._blocks:
            with damage_told(self.path, _ADVICE):
                labels = block.column("label")
                labels.validate(full=True)
            yield labels
            self.release()

    def numbers_of(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return a column of numbers at ``rows``, of the same shape."""
        self._release_now_and_then(rows.size)
        blocks, within = rows >> _BLOCK_BITS, rows & ((1 << _BLOCK_BITS) - 1)
        with damage_told(self.path, _ADVICE):
            found = np.empty(rows.shape, self._blocks[0].column(name).type.to_pandas_dtype())
            for number in np.unique(blocks).tolist():
                chosen = blocks == number
                found[chosen] = self._blocks[number].column(name).to_numpy(zero_copy_only=True)[within[chosen]]
        return found

    def labels_of(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the labels of ``rows``, shape (batch,), in order."""
        self._release_now_and_then(len(rows))
        with damage_told(self.path, _ADVICE):
            return [text_at(*self._place("label", row)).decode() for row in rows.tolist()]

    def token_letters_of(self, rows: NDArray[np.int64]) -> list[NDArray[np.int16]]:
        """Return for each of ``rows`` how many of its label's characters each of its tokens stands for."""
        with damage_told(self.path, _ADVICE):
            return [numbers_at(*self._place("token_letters", row)) for row in rows.tolist()]

    def release(self) -> None:
        """Drop mapped pages from the process; they are read again when touched."""
        self._map.release()
        self._read_since_release = 0

    def _release_now_and_then(self, rows: int) -> None:
        self._read_since_release += rows
        if self._read_since_release > _ROWS_BETWEEN_RELEASES:
            self.release()

    def _place(self, name: str, row: int) -> tuple[pa.Array, int]:
        return self._blocks[row >> _BLOCK_BITS].column(name), row & ((1 << _BLOCK_BITS) - 1)


def open_rows(folder: Path, manifest: Manifest) -> PromptRows:
    """Open a store's rows; where the file is missing or of other shards it is written, and listed in the manifest.

    Where the store cannot be written, or another process writes it, the file lies in a folder for temporary files, for
    as long as this process uses it.
    """
    rows = _fitting(folder, manifest)
    if rows is not None:
        return rows
    note(f"indexing labels and lengths of {folder} in {ROWS_FILE}")
    try:
        with locked(folder):
            current = Manifest.load(folder, manifest.kind)
            write_rows(folder, current)
            manifest.files[ROWS_FILE] = current.files[ROWS_FILE]
    except (UserError, OSError) as error:
        note(f"{ROWS_FILE} is not saved: {error}")
        return _made_for_now(folder, manifest)
    return _fitting(folder, manifest) or _made_for_now(folder, manifest)


def write_rows(folder: Path, manifest: Manifest) -> None:
    """Write the file of a store's rows and commit it, unless it is there; the caller holds the store's lock."""
    if _fitting(folder, manifest) is None:
        manifest.withdraw_files(folder, ROWS_FILE)
        with atomic_path(folder / ROWS_FILE) as path:
            write_rows_file(path, folder, manifest)
        manifest.commit_files(folder, ROWS_FILE)


def write_rows_file(path: Path, folder: Path, manifest: Manifest) -> None:
    """Write the rows of the store in ``folder`` to ``path``; the same catalogues give the same bytes.

    Raises:
        DamagedStore: a catalogue is not what was committed.
    """
    catalogues = manifest.catalogues(folder)
    named = [_names_in(catalogue) for catalogue in catalogues]
    taken_over = [name for name in _TAKEN_OVER if all(name in names for names in named)]
    writer: ipc.RecordBatchFileWriter | None = None
    with pa.OSFile(str(path), "wb") as sink:
        for table in _in_blocks(catalogues, ["label", "label_length", *taken_over]):
            block = _block(table, taken_over)
            if writer is None:
                made_up = json.dumps(made_up_ranges(catalogues)).encode()
                metadata = {_MADE_FROM: digest_of_shards(manifest).encode(), _MADE_UP: made_up}
                writer = ipc.new_file(sink, block.schema.with_metadata(metadata))
            writer.write_batch(block)
        if writer is not None:
            writer.close()


def _names_in(catalogue: Path) -> set[str]:
    with damage_told(catalogue, _ADVICE):
        return set(pq.read_schema(catalogue).names)


def digest_of_shards(manifest: Manifest) -> str:
    """Return a digest of the catalogues that the rows are made from."""
    digest = hashlib.sha256()
    for shard in manifest.shards:
        digest.update(f"{shard.rows} {shard.files[shard.catalogue].sha256}\n".encode())
    return digest.hexdigest()


def _fitting(folder: Path, manifest: Manifest) -> PromptRows | None:
    record, path = manifest.files.get(ROWS_FILE), folder / ROWS_FILE
    if record is None or not path.is_file() or path.stat().st_size != record.bytes:
        return None
    rows = PromptRows(path)
    if rows.made_from != digest_of_shards(manifest):
        return None
    checks.soon(path, record)
    return rows


def _made_for_now(folder: Path, manifest: Manifest) -> PromptRows:
    scratch = scratch_folder()
    write_rows_file(Path(scratch.name) / ROWS_FILE, folder, manifest)
    rows = PromptRows(Path(scratch.name) / ROWS_FILE)
    rows.kept_in = scratch
    return rows


def _in_blocks(catalogues: list[Path], columns: list[str]) -> Iterator[pa.Table]:
    """Yield the rows of all catalogues in tables of a block's rows; the last one has what is left."""
    waiting: list[pa.Table] = []
    size = 1 << _BLOCK_BITS
    for catalogue in catalogues:
        with damage_told(catalogue, _ADVICE):
            waiting.append(pq.read_table(catalogue, columns=columns))
        while sum(len(table) for table in waiting) >= size:
            whole = pa.concat_tables(waiting)
            yield whole.slice(0, size)
            waiting = [whole.slice(size)]
    if waiting and (rest := pa.concat_tables(waiting)):
        yield rest


def _block(table: pa.Table, taken_over: list[str]) -> pa.RecordBatch:
    labels = pa.concat_arrays(table["label"].chunks).cast(pa.string())
    columns = {
        "label": labels,
        "label_length": pa.concat_arrays(table["label_length"].chunks).cast(pa.int16()),
        "label_hash": pa.array(hashes_of(labels)),
        **{name: pa.concat_arrays(table[name].chunks) for name in taken_over},
    }
    return pa.RecordBatch.from_pydict(columns)


def made_up_ranges(catalogues: Sequence[Path]) -> Ranges:
    """Return the ranges of rows whose source says so, counted through all catalogues; most are told by a footer."""
    ranges: Ranges = []
    first = 0
    for catalogue in catalogues:
        with pq.ParquetFile(catalogue) as file:
            rows = file.metadata.num_rows
            if _may_hold_some(file):
                source = file.read([_SOURCE]).column(0)
                mask = np.asarray(pc.fill_null(pc.equal(source, MADE_UP), False))
                edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
                ranges += (first + edges.reshape(-1, 2)).tolist()
        first += rows
    return ranges


def within(ranges: Ranges, first: int, rows: int) -> NDArray[np.bool_]:
    """Return which of ``rows`` rows from row ``first`` on are in ranges, shape (rows,)."""
    found = np.zeros(rows, np.bool_)
    for start, stop in ranges:
        found[max(start - first, 0) : max(stop - first, 0)] = True
    return found


def _may_hold_some(file: pq.ParquetFile) -> bool:
    """Return whether the least and the greatest source of a part of the file leave room for it."""
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    told = [column.statistics for column in columns if column.path_in_schema == _SOURCE]
    return any(one is None or not one.has_min_max or one.min <= MADE_UP <= one.max for one in told)
