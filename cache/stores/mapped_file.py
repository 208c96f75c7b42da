"""A file mapped into memory that holds no descriptor: a store of thousands of shards needs no more of them than one.

What is read of a row of it is looked for here: Arrow follows the offsets of a damaged file out of the map, which ends
the process before its hash is compared.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dptr.cache.errors import DamagedStore


class MappedFile:
    """A whole file, mapped read-only.

    Python's own ``mmap`` keeps a descriptor for as long as the map lives (until 3.13), Arrow's does not.

    Attributes:
        buffer: the file's bytes, uint8; the map lives as long as anything refers to it.
    """

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as file:
            self.buffer: pa.Buffer = file.read_buffer()

    def release(self) -> None:
        """Let the kernel drop the pages from this process; they are read again when touched.

        Without effect where the system has no ``madvise``: the kernel takes them back by itself when memory is short.
        """
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if advice is not None and self.buffer.size:
            address, size = ctypes.c_void_p(self.buffer.address), ctypes.c_size_t(self.buffer.size)
            ctypes.CDLL(None).madvise(address, size, ctypes.c_int(advice))


@contextmanager
def damage_told(path: Path, advice: str) -> Iterator[None]:
    """Let what cannot be found in a mapped file be told as the damage that it comes from."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
        raise DamagedStore(f"{path} cannot be read ({error})", advice) from error


def text_at(column: pa.Array, row: int) -> bytes:
    """Return the bytes of a row of a column of text or of bytes.

    Raises:
        ValueError: they are said to lie outside of the column.
    """
    data = column.buffers()[2]
    return b"" if data is None else data[_span(column, row, data.size)].to_pybytes()


def numbers_at(column: pa.Array, row: int) -> NDArray[Any]:
    """Return the numbers of a row of a column of lists, without a copy.

    Raises:
        ValueError: as :func:`text_at`.
    """
    values = column.values
    numbers: NDArray[Any] = values[_span(column, row, len(values))].to_numpy(zero_copy_only=True)
    return numbers


def _span(column: pa.Array, row: int, size: int) -> slice:
    start, end = struct.unpack_from("=2i", column.buffers()[1], np.dtype(np.int32).itemsize * (column.offset + row))
    if not 0 <= start <= end <= size:
        raise ValueError(f"row {row} lies outside of its column")
    return slice(start, end)
