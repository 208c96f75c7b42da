"""A file mapped into memory that holds no descriptor: a store of thousands of shards needs no more of them than one."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pyarrow as pa


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
