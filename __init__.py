"""dptr: pre-train a scene-text decoder from text alone, out of an offline cache of CLIP embeddings.

In a notebook::

    import dptr

    store = dptr.embed_text(Path("words.txt"))
    bank = dptr.build_orp_bank("photos/")
    decoder = dptr.pretrain("tiny", steps=2000)
    recogniser = dptr.finetune("crops/", from_=decoder.out)
    dptr.load(recogniser.out).read("sign.png")

Each call resumes an earlier one with the same settings, and raises :class:`DptrError` with the problem and its fix.
Importing this package loads neither torch, transformers nor faiss; the names below are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dptr.cache.errors import DptrError
    from dptr.cache.stores.orp import OrpBank
    from dptr.cache.stores.prompts import PromptStore
    from dptr.cache.text.charset import Charset
    from dptr.pipeline.commands import build_orp_bank, embed_text
    from dptr.trainer.commands.training import finetune, pretrain
    from dptr.trainer.data.datasets import CropDataset, PromptDataset
    from dptr.trainer.evaluate import Evaluation
    from dptr.trainer.model.recognizer import Prediction
    from dptr.trainer.read import Predictions, Reader, load
    from dptr.trainer.training.runs import TrainingSummary

__version__ = "0.2.0"

#: Public name -> the module that it is imported from.
_PUBLIC = {
    "Charset": "cache.text.charset",
    "CropDataset": "trainer.data.datasets",
    "DptrError": "cache.errors",
    "Evaluation": "trainer.evaluate",
    "OrpBank": "cache.stores.orp",
    "Prediction": "trainer.model.recognizer",
    "Predictions": "trainer.read",
    "PromptDataset": "trainer.data.datasets",
    "PromptStore": "cache.stores.prompts",
    "Reader": "trainer.read",
    "TrainingSummary": "trainer.training.runs",
    "build_orp_bank": "pipeline.commands",
    "embed_text": "pipeline.commands",
    "finetune": "trainer.commands.training",
    "load": "trainer.read",
    "pretrain": "trainer.commands.training",
}

__all__ = [
    "Charset",
    "CropDataset",
    "DptrError",
    "Evaluation",
    "OrpBank",
    "Prediction",
    "Predictions",
    "PromptDataset",
    "PromptStore",
    "Reader",
    "TrainingSummary",
    "__version__",
    "build_orp_bank",
    "embed_text",
    "finetune",
    "load",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"dptr.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'dptr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
