"""Bytes of a text file, plain or compressed, in blocks that end where an item ends.

A corpus may be larger than memory and so may be one of its lines; nothing here holds more than a block or two. Python's
own readers of compressed files lose what stood before a cut, so the decompressors are driven directly: a file that was
cut short still gives every whole item before the cut.
"""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import zstandard

#: Records one refusal in the source that is being read: line (None: the whole file), item, reason.
Refuse = Callable[[int | None, str, str], None]

#: Where a block may be cut: at the end of a line, or at any white space.
LINE_ENDS = (b"\n",)
WORD_ENDS = (b"\n", b" ", b"\t", b"\r")

#: A block is about this long; an item that is longer than a block is refused.
BLOCK_BYTES = 8 << 20
_PIECE_BYTES = 1 << 20
#: Small, because a few compressed bytes can stand for very many.
_COMPRESSED_BYTES = 16 << 10

#: How files begin that hold no text in UTF-8, and what is said of them.
_NO_TEXT = {
    b"\xff\xfe": "UTF-16 where UTF-8 is expected",
    b"\xfe\xff": "UTF-16 where UTF-8 is expected",
    b"%PDF-": "a PDF, not text: save its text as .txt",
    b"PK\x03\x04": "a zip file or an office document, not text: save its text as .txt",
    b"\x89PNG": "a picture, not text",
    b"\xff\xd8\xff": "a picture, not text",
}


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}
COMPRESSED_SUFFIXES = tuple(_DECOMPRESSORS)
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def item_blocks(source: str, ends: tuple[bytes, ...], refuse: Refuse) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, bytes) of ``source``, each block ending after one of ``ends`` or with the file.

    Refused through ``refuse``: an item longer than a block, the rest of a damaged or cut file, what is no UTF-8 text.
    """
    line = 1
    waiting = bytearray()
    skipping = False
    try:
        for number, piece in enumerate(_pieces(source)):
            if number == 0 and (reason := _why_no_text(piece)):
                refuse(None, "", reason)
                return
            if skipping:
                start = _first_end(piece, ends)
                line += piece.count(b"\n", 0, start)
                piece = piece[start:]
                skipping = start == 0
                if skipping:
                    continue
            waiting += piece
            if len(waiting) < BLOCK_BYTES:
                continue
            cut = _last_end(waiting, ends)
            if cut:
                block = bytes(waiting[:cut])
                del waiting[:cut]
                yield line, block
                line += block.count(b"\n")
            else:
                refuse(line, waiting[:200].decode("utf-8", "backslashreplace"), f"longer than {BLOCK_BYTES} bytes")
                waiting.clear()
                skipping = True
    except _DAMAGE as error:
        refuse(line + waiting.count(b"\n"), "", f"damaged or cut short from here on: {error}")
        # What follows the last end is half an item.
        del waiting[_last_end(waiting, ends) :]
    if waiting:
        yield line, bytes(waiting)


def _pieces(source: str) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file, or of standard input for ``-``."""
    if source == "-":
        while piece := sys.stdin.buffer.read(_PIECE_BYTES):
            yield piece
        return
    make = _DECOMPRESSORS.get(Path(source).suffix.lower())
    with open(source, "rb") as stream:
        if make is None:
            while piece := stream.read(_PIECE_BYTES):
                yield piece
            return
        decompressor: _Decompressor | None = None
        while compressed := stream.read(_COMPRESSED_BYTES):
            # A file may hold several compressed streams behind each other, as `cat a.gz b.gz` makes them.
            while compressed:
                if decompressor is None or decompressor.eof:
                    decompressor = make()
                if piece := decompressor.decompress(compressed):
                    yield piece
                compressed = decompressor.unused_data
        if decompressor is not None and not decompressor.eof:
            raise EOFError("the compressed stream has no end")


def _last_end(block: bytearray, ends: tuple[bytes, ...]) -> int:
    """Return the position after the last of ``ends``, or 0."""
    return max(block.rfind(end) for end in ends) + 1


def _why_no_text(start: bytes) -> str | None:
    return next((reason for mark, reason in _NO_TEXT.items() if start.startswith(mark)), None)


def _first_end(piece: bytes, ends: tuple[bytes, ...]) -> int:
    """Return the position after the first of ``ends``, or 0."""
    return min((found for end in ends if (found := piece.find(end)) >= 0), default=-1) + 1
