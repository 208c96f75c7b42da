"""dptr: pre-train a scene-text decoder from text alone, out of an offline cache of CLIP embeddings.

In a notebook::

    import dptr

    store = dptr.embed_text(Path("words.txt"))
    bank = dptr.build_orp_bank("photos/")
    decoder = dptr.pretrain("tiny", steps=2000)
    recogniser = dptr.finetune("crops/", from_=decoder.folder)
    dptr.load(recogniser.folder).read("sign.png")

Each of these resumes what an earlier call with the same settings left, and raises :class:`DptrError`, whose text says
what was wrong and what to do. Importing this package loads neither torch, transformers nor faiss: what is named
here is fetched on first use.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dptr.cache.choices import EmbeddingsDtype, UnicodeForm, Units
from dptr.cache.errors import UserError
from dptr.cache.python_calls import checked, require_in_range
from dptr.pipeline.choices import Case, Context, CropKind, EmbeddingsKind, Precision, Unit
from dptr.trainer.choices import FmuKind, NoiseDraw, Sampling, Tracker

if TYPE_CHECKING:
    from dptr.cache.errors import DptrError
    from dptr.cache.stores.orp import OrpBank
    from dptr.cache.stores.prompts import PromptStore
    from dptr.cache.text.charset import Charset
    from dptr.trainer.model.recognizer import Prediction
    from dptr.trainer.read import Predictions, Reader, load

__version__ = "0.2.0"

_PUBLIC = {
    "Charset": "dptr.cache.text.charset",
    "DptrError": "dptr.cache.errors",
    "OrpBank": "dptr.cache.stores.orp",
    "PromptStore": "dptr.cache.stores.prompts",
    "Reader": "dptr.trainer.read",
    "Prediction": "dptr.trainer.model.recognizer",
    "Predictions": "dptr.trainer.read",
    "load": "dptr.trainer.read",
}

__all__ = [
    "Charset",
    "DptrError",
    "OrpBank",
    "Prediction",
    "Predictions",
    "PromptStore",
    "Reader",
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
        folder: of the run; for :func:`load`, or :func:`finetune`'s ``from_``.
        steps: optimiser steps done in all. seconds: that this call took.
        metrics: of the best checkpoint on validation data, by name; accuracies are shares from 0 to 1.
    """

    folder: Path
    steps: int
    seconds: float
    metrics: dict[str, float]


@checked
def embed_text(
    corpus: str | Path | Sequence[str] | Sequence[Path],
    *,
    workspace: str | Path = _WORKSPACE,
    out: str | Path | None = None,
    clip: str = "tiny",
    unit: Unit = "word",
    column: str = "text",
    charset: str = "94",
    units: Units | None = None,
    min_count: int = 1,
    case: Case = "keep",
    unicode: UnicodeForm = "nfkc",
    ascii: bool = False,
    simplified: bool = False,
    max_label_length: int = 25,
    template: str | Sequence[str] | None = None,
    embeddings: EmbeddingsKind | None = None,
    context: Context = "content",
    precision: Precision = "fp32",
    dtype: EmbeddingsDtype = "float16",
    shard_rows: int = 16384,
    cover_subwords: int = 0,
    seed: int = 0,
    max_bad: int | None = None,
    device: str = "auto",
    batch_size: int | None = None,
) -> PromptStore:
    """Embed labels with CLIP's text encoder, once, and open the prompt store they are in.

    Args:
        corpus: words, as a list of str; or a file, or a list of Path: text (a word is a label), also compressed, JSONL
            or Parquet.
        workspace: folder that holds stores and runs.
        out, clip, …: the options of ``dptr embed-text``, with underscores; ``dptr embed-text --help`` describes them.

    Raises:
        DptrError: an argument, an input or a setting is wrong, or the folder holds a store of other settings.
    """
    options = dict(locals())
    files = _corpus_files(options.pop("corpus"), Path(options.pop("workspace")), unit)
    options["template"] = [template] if isinstance(template, str) else template and list(template)
    options["out"] = _path(out)
    figures = _run("dptr.pipeline.commands", "embed_text", workspace, files=files, **options)
    store: PromptStore = __getattr__("PromptStore")(Path(figures["out"]))
    return store


@checked
def build_orp_bank(
    photos: str | Path | Sequence[str | Path],
    *,
    workspace: str | Path = _WORKSPACE,
    out: str | Path | None = None,
    clip: str = "tiny",
    crops: CropKind = "random",
    crops_per_image: int = 8,
    tokens_per_crop: int | None = None,
    workers: int = 1,
    seed: int = 0,
    precision: Precision = "fp32",
    dtype: EmbeddingsDtype = "float16",
    exclude_near: str | Path | Sequence[str | Path] | None = None,
    exclude_threshold: float = 0.95,
    retry_rejected: bool = False,
    max_bad: int | None = None,
    device: str = "auto",
    batch_size: int | None = None,
) -> OrpBank:
    """Run random crops of photos through CLIP's image encoder, once, and open the bank they are in.

    Args:
        photos: one or several folders, image files or archives.
        workspace: folder that holds stores and runs.
        out, clip, …: the options of ``dptr build-orp-bank``, with underscores.

    Raises:
        DptrError: an argument, an input or a setting is wrong, or the folder holds a bank of other settings.
    """
    options = dict(locals())
    options |= {"paths": _paths(options.pop("photos")), "out": _path(out)}
    options["exclude_near"] = None if exclude_near is None else _paths(exclude_near)
    figures = _run("dptr.pipeline.commands", "build_orp_bank", options.pop("workspace"), **options)
    bank: OrpBank = __getattr__("OrpBank")(Path(figures["out"]))
    return bank


@checked
def pretrain(
    recipe: str | Path = "tiny",
    *,
    workspace: str | Path = _WORKSPACE,
    prompts: str | Path | None = None,
    orp: str | Path | None = None,
    out: str | Path | None = None,
    steps: int | None = None,
    seed: int | None = None,
    decoder: str | None = None,
    noise: NoiseDraw | None = None,
    sampling: Sampling | None = None,
    track: Tracker | None = None,
    set: Mapping[str, object] | None = None,
    yes: bool = False,
    device: str = "auto",
) -> Training:
    """Train a decoder from the workspace's text embeddings alone.

    Args:
        recipe: ``tiny``, ``small``, ``paper``, or a TOML file.
        workspace: folder that holds stores and runs.
        set: recipe key -> value, as in ``{"noise.ratio": 0.2}``.
        prompts, orp, …: the options of ``dptr pretrain``.

    Raises:
        DptrError: an argument is wrong, no prompt store, stores of different encoders, a key that no recipe has.
    """
    options = dict(locals())
    options |= {"prompts": _path(prompts), "orp": _path(orp), "out": _path(out), "recipe": str(recipe)}
    options["changes"] = _changes(options.pop("set"))
    return _training(_run("dptr.trainer.commands.training", "pretrain", options.pop("workspace"), **options))


@checked
def finetune(
    data: str | Path | Sequence[str | Path],
    *,
    from_: str | Path = "newest",
    recipe: str | Path | None = None,
    workspace: str | Path = _WORKSPACE,
    charset: str | None = None,
    units: Units | None = None,
    out: str | Path | None = None,
    steps: int | None = None,
    seed: int | None = None,
    encoder: str | None = None,
    fmu: FmuKind | None = None,
    mix: str | None = None,
    validation: str | Path | Sequence[str | Path] | None = None,
    text: str | Path | Sequence[str | Path] | None = None,
    photos: str | Path | None = None,
    unlabelled: str | Path | Sequence[str | Path] | None = None,
    simplified: bool = False,
    track: Tracker | None = None,
    set: Mapping[str, object] | None = None,
    yes: bool = False,
    device: str = "auto",
) -> Training:
    """Train a recogniser on labelled crops.

    Args:
        data: one or several folders with ``labels.tsv``, LMDB, Parquet, tar: every form that ``dptr finetune`` takes.
        from_: a pre-trained run (``newest``: the last one), a recogniser to adapt (a run, a model file, ``bundled`` or
            ``scripts``), or ``none``.
        recipe: ``adapt`` (default for a recogniser), ``tiny`` (else), ``small``, ``paper``, or a TOML file.
        workspace: folder that holds stores and runs.
        set: recipe key -> value, as in ``{"finetune.learning_rate": 0.001}``.
        charset, units, …: the options of ``dptr finetune``.

    Raises:
        DptrError: an argument is wrong, no usable crops, too few of them, or a decoder that does not fit.
    """
    options = dict(locals())
    lists = {"validation": validation, "text": text, "unlabelled": unlabelled}
    options |= {
        "data": _paths(data),
        **{name: None if given is None else _paths(given) for name, given in lists.items()},
    }
    options |= {"start": str(options.pop("from_")), "recipe": recipe and str(recipe), "out": _path(out)}
    options["photos"] = _path(photos)
    options["changes"] = _changes(options.pop("set"))
    return _training(_run("dptr.trainer.commands.training", "finetune", options.pop("workspace"), **options))


def _corpus_files(corpus: str | Path | Sequence[str] | Sequence[Path], workspace: Path, unit: Unit) -> list[str]:
    """Return the files of a corpus; words are written to one in the workspace first."""
    if isinstance(corpus, str | Path):
        return [str(corpus)]
    words = [item for item in corpus if isinstance(item, str)]
    if not words:
        return list(map(str, corpus))
    for word in words:
        if Path(word).is_file():
            raise UserError(f"{word!r} in a list is a word, and there is a file of that name", "Give files as Path")
        if not word.strip() or "\n" in word or (unit == "word" and len(word.split()) > 1):
            raise UserError(f"{word!r} is not one word", 'Leave it out, or give unit="line" for words with spaces')
    text = "".join(f"{word}\n" for word in words)
    path = workspace / "words" / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.txt"
    importlib.import_module("dptr.cache.stores.files").write_text(path, text)
    return [str(path)]


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _paths(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(paths)] if isinstance(paths, str | Path) else list(map(Path, paths))


def _changes(set: Mapping[str, object] | None) -> list[str]:
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in (set or {}).items()]


def _run(module: str, command: str, workspace: str | Path, **options: Any) -> dict[str, Any]:
    """Run a command as the command line does, and return its figures."""
    # Without effect where torch is loaded already: its threads are then the caller's choice.
    importlib.import_module("dptr.cache.processors").start_no_more_threads_than_usable()
    function = getattr(importlib.import_module(module), command)
    require_in_range(function, options)
    root = importlib.import_module("dptr.cache.workspace").Workspace(Path(workspace))
    figures: dict[str, Any] = function(root, **options).figures
    return figures


def _training(figures: dict[str, Any]) -> Training:
    return Training(Path(figures["out"]), figures["steps"], figures["seconds"], dict(figures["metrics"]))


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'dptr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_PUBLIC]
