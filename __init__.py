"""dptr: pre-train a scene-text decoder from text alone, out of an offline cache of CLIP embeddings.

In a notebook::

    import dptr

    store = dptr.embed_text("words.txt")
    bank = dptr.build_orp_bank("photos/")
    decoder = dptr.pretrain("tiny", steps=2000)
    recogniser = dptr.finetune("crops/", start=decoder.folder)
    dptr.load(recogniser.folder).read(["sign.png"])

Each of these goes on where an earlier call with the same settings stopped, and raises :class:`DptrError`, whose text
says what was wrong and what to do. Importing this package loads neither torch, transformers nor faiss: what is named
here is fetched on first use.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dptr.cache.charset import Charset
    from dptr.cache.errors import DptrError
    from dptr.cache.stores.orp import OrpBank
    from dptr.cache.stores.prompts import PromptStore
    from dptr.trainer.model.recognizer import Reading
    from dptr.trainer.read import Reader, load

__version__ = "0.1.0"

_PUBLIC = {
    "Charset": "dptr.cache.charset",
    "DptrError": "dptr.cache.errors",
    "OrpBank": "dptr.cache.stores.orp",
    "PromptStore": "dptr.cache.stores.prompts",
    "Reader": "dptr.trainer.read",
    "Reading": "dptr.trainer.model.recognizer",
    "load": "dptr.trainer.read",
}

__all__ = [
    "Charset",
    "DptrError",
    "OrpBank",
    "PromptStore",
    "Reader",
    "Reading",
    "Training",
    "__version__",
    "build_orp_bank",
    "embed_text",
    "finetune",
    "load",
    "pretrain",
]

_WORKSPACE = "dptr_data"


@dataclass(frozen=True)
class Training:
    """What a training came to.

    Attributes:
        folder: of the run; for :func:`load`, or :func:`finetune`'s ``start``.
        steps: optimiser steps done in all. seconds: that this call took.
        metrics: of the best checkpoint on validation data, by name; accuracies are shares from 0 to 1.
    """

    folder: Path
    steps: int
    seconds: float
    metrics: dict[str, float]


def embed_text(*files: str | Path, workspace: str | Path = _WORKSPACE, **options: Any) -> PromptStore:
    """Embed the labels of text files with CLIP's text tower, once, and open the prompt store they are in.

    Args:
        files: text (a word is a label), also compressed, JSONL or Parquet.
        workspace: folder that holds stores and runs.
        options: those of ``dptr embed-text``, with underscores: ``clip="tiny"``, ``charset="94"``, ``out=Path(…)``, …

    Raises:
        DptrError: an input or setting is wrong, or the folder holds a store of other settings.
    """
    figures = _run("dptr.pipeline.commands", "embed_text", workspace, list(map(str, files)), **options)
    store: PromptStore = __getattr__("PromptStore")(Path(figures["out"]))
    return store


def build_orp_bank(*photos: str | Path, workspace: str | Path = _WORKSPACE, **options: Any) -> OrpBank:
    """Run random crops of photos through CLIP's image tower, once, and open the bank they are in.

    Args:
        photos: folders, image files, archives.
        workspace: folder that holds stores and runs.
        options: those of ``dptr build-orp-bank``, with underscores: ``crops_per_image=8``, …

    Raises:
        DptrError: an input or setting is wrong, or the folder holds a bank of other settings.
    """
    figures = _run("dptr.pipeline.commands", "build_orp_bank", workspace, list(map(Path, photos)), **options)
    bank: OrpBank = __getattr__("OrpBank")(Path(figures["out"]))
    return bank


def pretrain(recipe: str = "tiny", workspace: str | Path = _WORKSPACE, **options: Any) -> Training:
    """Train a decoder from the workspace's text states alone.

    Args:
        recipe: ``tiny``, ``small``, ``paper``, or a TOML file.
        workspace: folder that holds stores and runs.
        options: those of ``dptr pretrain``: ``steps=2000``, ``device="cuda"``, ``changes=["noise.ratio=0"]``, …

    Raises:
        DptrError: no prompt store, stores of different encoders, a key that no recipe has.
    """
    return _training(_run("dptr.trainer.commands.training", "pretrain", workspace, recipe=recipe, **options))


def finetune(
    *data: str | Path,
    start: str | Path = "newest",
    recipe: str = "tiny",
    workspace: str | Path = _WORKSPACE,
    **options: Any,
) -> Training:
    """Train a recogniser on labelled crops.

    Args:
        data: folders with ``labels.tsv``, LMDB, Parquet, tar: every form that ``dptr finetune`` takes.
        start: a run, a model file, ``newest`` (pre-trained in this workspace), ``bundled`` or ``none``.
        recipe: ``tiny``, ``small``, ``paper``, or a TOML file.
        workspace: folder that holds stores and runs.
        options: those of ``dptr finetune``: ``steps=2000``, ``charset="62"``, ``validation=[Path(…)]``, …

    Raises:
        DptrError: no usable crops, too few of them, or a decoder that does not fit.
    """
    paths = list(map(Path, data))
    run = _run(
        "dptr.trainer.commands.training", "finetune", workspace, data=paths, start=str(start), recipe=recipe, **options
    )
    return _training(run)


def _run(module: str, command: str, workspace: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
    """Run a command as the command line does, and return its figures."""
    # Without effect where torch is loaded already: its threads are then the caller's choice.
    importlib.import_module("dptr.cache.processors").start_no_more_threads_than_usable()
    root = importlib.import_module("dptr.cache.workspace").Workspace(Path(workspace))
    figures: dict[str, Any] = getattr(importlib.import_module(module), command)(root, *arguments, **options).figures
    return figures


def _training(figures: dict[str, Any]) -> Training:
    return Training(Path(figures["out"]), figures["steps"], figures["seconds"], dict(figures["metrics"]))


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'dptr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
