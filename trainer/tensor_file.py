"""Tensors as a safetensors file whose permissions are those of every other file, as the umask has them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: dict[str, Tensor], path: Path, header: dict[str, str] | None = None) -> None:
    """Write tensors, each contiguous, and a header of text to ``path``."""
    path.touch()
    mode = path.stat().st_mode
    # The library writes a private file of its own and renames it.
    save_file(tensors, path, header)
    path.chmod(mode)
