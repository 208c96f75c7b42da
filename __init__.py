"""dptr: pre-train a scene-text decoder from text alone, out of an offline cache of CLIP embeddings.

Importing this package loads neither torch, transformers nor faiss: the public names below are fetched on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dptr.cache.charset import Charset
    from dptr.cache.stores.orp import OrpBank
    from dptr.cache.stores.prompts import PromptStore
    from dptr.trainer.read import load

__version__ = "0.1.0"

_PUBLIC = {
    "Charset": "dptr.cache.charset",
    "OrpBank": "dptr.cache.stores.orp",
    "PromptStore": "dptr.cache.stores.prompts",
    "load": "dptr.trainer.read",
}

__all__ = ["Charset", "OrpBank", "PromptStore", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'dptr' has no attribute {name!r}")
