"""One hash for the weights of a model, whatever file and library they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray


def hash_tensors(named: Iterable[tuple[str, NDArray[Any]]]) -> str:
    """Return the SHA-256 over names, shapes and values, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
