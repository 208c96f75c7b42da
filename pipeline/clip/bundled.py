"""The bundled CLIPs: small enough to ship with the package, trained on rendered words by ``examples/train_clip``.

``tiny`` is for English, ``scripts`` for accented Latin, Cyrillic, Greek, Hebrew, Arabic, Devanagari and Thai. Their
model cards, ``README.md`` in their folders, say what they were trained on and how well they do.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from dptr.cache.choices import BUNDLED_CLIPS

FOLDERS = {name: Path(__file__).parent / name for name in BUNDLED_CLIPS}
BUNDLED = FOLDERS["tiny"]
_HELD_OUT_ONE_IN = 10


def is_held_out(word: str) -> bool:
    """Return whether ``word``, in any case, is never trained on: one in ten, by a hash of its letters."""
    return zlib.crc32(word.lower().encode()) % _HELD_OUT_ONE_IN == 0
