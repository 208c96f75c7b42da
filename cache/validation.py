"""Which data is for validation: one rule for prompts and word images, that growth of the data does not move."""

from __future__ import annotations

import hashlib


def validation_position(name: str, seed: int) -> float:
    """Return where ``name`` stands in [0, 1), by a hash of it and the seed; what is below a share is for validation.

    It depends on nothing else, so that whatever joins or leaves the data, the side of ``name`` stays. A larger share
    keeps all that a smaller one chose.
    """
    digest = hashlib.blake2b(f"{seed}\t{name}".encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48
