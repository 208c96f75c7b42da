"""Files of a CLIP: from a bundled model, a directory, or the hub; always a directory.

The bundled CLIPs: small enough to ship with the package, trained on rendered words by ``examples/train_clip``.

``tiny`` is for English, ``scripts`` for accented Latin, Cyrillic, Greek, Hebrew, Arabic, Devanagari and Thai. Their
model cards, ``README.md`` in their folders, say what they were trained on and how well they do.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dptr.cache import hub
from dptr.cache.choices import BUNDLED_CLIPS
from dptr.cache.errors import UserError
from dptr.cache.file_names import MODEL_CONFIG_FILE, SAFETENSORS, WEIGHTS_FILE

FOLDERS = {name: Path(__file__).parent / name for name in BUNDLED_CLIPS}
BUNDLED = FOLDERS["tiny"]
_HELD_OUT_ONE_IN = 10

_DESCRIPTIONS = ["*.json", "*.txt", "*.model"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_CONVERT = (
    "Convert them to safetensors where you trust them, or name a revision of the hub that has it "
    "(NAME@refs/pr/NUMBER, see the model's pull requests)"
)


#: Separates text encoder and image encoder in a pair's name and weights hash.
PAIRED = "+"


def find_both(name: str) -> tuple[Path, Path]:
    """Return the directories of a CLIP's text encoder and of its image encoder: one and the same unless it is a pair.

    Raises:
        UserError: as :func:`find_clip`.
    """
    text, pair, image = name.partition(PAIRED)
    if not pair or Path(name).exists():
        return (found := find_clip(name)), found
    return find_clip(text), find_clip(image)


def find_clip(name: str) -> Path:
    """Return a directory with a CLIP's files; of a pair, with those of its image encoder.

    Args:
        name: ``tiny`` or ``scripts``, a directory that transformers saved, or a hub id such as
            ``openai/clip-vit-base-patch16``, which may end in ``@REVISION``. A pair is ``TEXT+IMAGE``.

    Raises:
        UserError: there is no such directory, or it cannot be downloaded and was not downloaded earlier.
    """
    if PAIRED in name and not Path(name).exists():
        name = name.partition(PAIRED)[2]
    if name in FOLDERS:
        return FOLDERS[name]
    if Path(name).exists() or not _looks_like_hub_id(name):
        if not (Path(name) / MODEL_CONFIG_FILE).is_file():
            raise UserError(
                f"{name} holds no CLIP (no {MODEL_CONFIG_FILE})",
                "Give a directory saved by transformers, a hub id, `tiny` or `scripts`",
            )
        return Path(name)
    return _from_hub(name)


def require_safetensors(folder: Path) -> None:
    """Check that a directory has safetensors weights: loading a pickle can run arbitrary code.

    Raises:
        UserError: the weights are missing or pickled.
    """
    if any(folder.glob(f"*{SAFETENSORS}")):
        return
    pickles = sorted(path.name for suffix in _PICKLES for path in folder.glob(suffix))
    if pickles:
        raise UserError(f"{folder} holds pickled weights only ({pickles[0]}), which are never loaded", _CONVERT)
    raise UserError(f"{folder} holds no weights (no {WEIGHTS_FILE})", "Give a directory saved by transformers")


def _looks_like_hub_id(name: str) -> bool:
    return name.partition("@")[0].count("/") <= 1 and not name.startswith((".", "/", "~"))


def _from_hub(name: str) -> Path:
    def require(files: list[str]) -> None:
        if not any(_is_safetensors(file) for file in files):
            raise UserError(f"the hub has {name} in pickled weights only, which are never loaded", _CONVERT)

    return hub.download(name, [*_DESCRIPTIONS, f"*{SAFETENSORS}"], require, "check the network, or use --clip tiny")


def _is_safetensors(name: str) -> bool:
    return name.endswith(SAFETENSORS) and "/" not in name


def hash_tensors(named: Iterable[tuple[str, NDArray[Any]]]) -> str:
    """Return the SHA-256 over names, shapes and values, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def is_held_out(word: str) -> bool:
    """Return whether ``word``, in any case, is never trained on: one in ten, by a hash of its letters."""
    return zlib.crc32(word.lower().encode()) % _HELD_OUT_ONE_IN == 0
