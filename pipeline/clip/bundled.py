"""The bundled CLIP: small enough to ship with the package, trained on rendered words by ``dptr train-clip``.

Its model card, ``tiny/README.md``, says what it was trained on and how well it does.
"""

from __future__ import annotations

import zlib
from pathlib import Path

NAME = "tiny"
BUNDLED = Path(__file__).parent / "tiny"
_HELD_OUT_ONE_IN = 10


def is_held_out(word: str) -> bool:
    """Return whether ``word``, in any case, is never trained on: one in ten, by a hash of its letters."""
    return zlib.crc32(word.lower().encode()) % _HELD_OUT_ONE_IN == 0
