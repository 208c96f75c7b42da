"""The crops of one data set as columns: of a million of them, none is an object until somebody looks at it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dptr.cache.stores.mapped_file import damage_told, text_at
from dptr.cache.word_images.form import Place
from dptr.cache.word_images.kept_file import BLOCK_BITS, MADE_AGAIN, Blocks, BlocksInMaking

_WITHIN = (1 << BLOCK_BITS) - 1
#: Each touches a page, and the kernel maps its neighbours with it, which count as this process's memory.
_ROWS_BETWEEN_RELEASES = 1 << 12


class Columns:
    """Key, label and source of each crop, in order.

    Text is kept as binary: names of files and labels may hold single surrogates, which are no UTF-8.

    Args:
        blocks: the columns ``key`` and ``label``, and ``offset`` and ``size`` where crops have places.
        sources: names of sources, in order. starts: the first row of each.
    """

    def __init__(self, blocks: Blocks, sources: Sequence[str], starts: Sequence[int]) -> None:
        self.kept = blocks
        self._sources, self._starts = list(sources), list(starts)
        self._read_since_release = 0

    def __len__(self) -> int:
        return sum(block.num_rows for block in self.kept.blocks)

    def text(self, name: str, row: int) -> str:
        """Return the ``key`` or the ``label`` of a row.

        Raises:
            DamagedStore: what was kept of the list is not what was written.
        """
        with damage_told(self.kept.path, MADE_AGAIN.capitalize()):
            return text_of(text_at(*self._place(name, row)))

    def place_of(self, row: int) -> Place | None:
        """Return where a row's image is; None where its key tells."""
        with damage_told(self.kept.path, MADE_AGAIN.capitalize()):
            if "offset" not in self.kept.blocks[0].schema.names:
                return None
            (offsets, within), (sizes, _) = self._place("offset", row), self._place("size", row)
            offset, size = offsets[within].as_py(), sizes[within].as_py()
            return None if offset is None else Place(int(offset), int(size))

    def source_of(self, row: int) -> str:
        """Return the name of a row's source."""
        return self._sources[bisect_right(self._starts, row) - 1]

    def take(self, name: str, rows: NDArray[np.int64]) -> pa.Array:
        """Return a column at ``rows``, which are of one block, shape (rows,); rows in turn are not copied.

        Raises:
            DamagedStore: as :meth:`text`.
        """
        column = self.kept.blocks[int(rows[0]) >> BLOCK_BITS].column(name)
        within = rows & _WITHIN
        first, last = int(within.min()), int(within.max())
        between = column.slice(first, last - first + 1)
        with damage_told(self.kept.path, MADE_AGAIN.capitalize()):
            between.validate(full=True)
        return between if bool((np.diff(rows) == 1).all()) else column.take(pa.array(within))

    def release(self) -> None:
        """Drop mapped pages from this process; they are read again when touched."""
        self.kept.release()
        self._read_since_release = 0

    def _place(self, name: str, row: int) -> tuple[pa.Array, int]:
        self._read_since_release += 1
        if self._read_since_release > _ROWS_BETWEEN_RELEASES:
            self.release()
        return self.kept.blocks[row >> BLOCK_BITS].column(name), row & _WITHIN


class ColumnsInMaking:
    """Takes crops one by one, in order, and hands them on in blocks.

    Args:
        making: takes the blocks. with_places: whether any crop has one.

    Attributes:
        sources, starts: as :class:`Columns` takes them.
    """

    def __init__(self, making: BlocksInMaking, with_places: bool = False) -> None:
        self._making, self._with_places = making, with_places
        self.sources: list[str] = []
        self.starts: list[int] = []
        self._rows = 0
        self._begin_block()

    def add(self, source: str, key: str, label: str, place: Place | None = None) -> None:
        """Take the next crop."""
        if not self.sources or self.sources[-1] != source:
            self.sources.append(source)
            self.starts.append(self._rows)
        self._rows += 1
        self._keys.append(bytes_of(key))
        self._labels.append(bytes_of(label))
        self._places.append(place)
        if len(self._keys) > _WITHIN:
            self.flush()

    def flush(self) -> None:
        """Hand on what waits; behind the last crop, too."""
        if not self._keys:
            return
        columns = {"key": pa.array(self._keys, pa.binary()), "label": pa.array(self._labels, pa.binary())}
        if self._with_places:
            columns["offset"] = pa.array([place and place.offset for place in self._places], pa.int64())
            columns["size"] = pa.array([place and place.size for place in self._places], pa.int64())
        self._making.add(pa.RecordBatch.from_pydict(columns))
        self._begin_block()

    def _begin_block(self) -> None:
        self._keys: list[bytes] = []
        self._labels: list[bytes] = []
        self._places: list[Place | None] = []


def bytes_of(text: str) -> bytes:
    """Return a text as columns hold it."""
    return text.encode("utf-8", "surrogatepass")


def text_of(stored: bytes) -> str:
    """Return the text that columns hold as these bytes."""
    return stored.decode("utf-8", "surrogatepass")
