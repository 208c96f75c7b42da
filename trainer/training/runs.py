"""A run's folder: description and identity, by which commands resume it, load it and reject other data."""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dptr.cache.errors import DamagedStore, DptrError, UserError
from dptr.cache.file_names import IDENTITY_FILE, LEXICON_FILE, RECIPE_FILE, RUN_FILE, STATE_FILE
from dptr.cache.printing import json_problem
from dptr.cache.progress import note
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.lock import locked
from dptr.cache.text.charset import Charset
from dptr.cache.text.lexicon import Lexicon
from dptr.trainer.model.decoders import emitted_by
from dptr.trainer.model.recognizer import RunKind as RunKind
from dptr.trainer.model.recognizer import Trained as Trained
from dptr.trainer.recipe import DecoderSettings, Recipe, load_saved_recipe, recipe_to_toml
from dptr.trainer.training.checkpoint import (
    AVERAGE,
    MODEL,
    CheckpointName,
    checkpoint_folder,
    file_of,
    find_checkpoint,
    load_state,
    load_tensors,
    save_checkpoint,
)

#: What the parts of a run's identity are called in errors.
_DATA = {
    "prompts": "prompt store",
    "orp": "ORP bank",
    "images": "labelled crops",
    "validation": "validation set",
    "from": "weights to start from",
    "encoder": "weights of the encoder",
}


@dataclass(frozen=True)
class Run:
    """A training run on disk.

    Attributes:
        folder: where it is. kind: which stage made it. recipe: as resolved. charset: of its decoder.
        memory_dim: width of the memory its decoder reads.
        data: identities of what it was trained on.
        clip: name of the CLIP that embedded its text; clip_weights: hash of its weights; empty for a recogniser.
    """

    folder: Path
    kind: RunKind
    recipe: Recipe
    charset: Charset
    memory_dim: int
    data: dict[str, Any]
    clip: str = ""
    clip_weights: str = ""

    @classmethod
    def load(cls, folder: Path) -> Run:
        """Read a run's description.

        Raises:
            UserError: not a run. DamagedStore: its description cannot be read.
        """
        path = folder / RUN_FILE
        if not path.is_file():
            raise UserError(f"{folder} is not a run (no {RUN_FILE})", "Name a folder that pretrain or finetune made")
        try:
            info = checksummed.read_json(path)
            checksummed.require_checksum(folder / RECIPE_FILE, needed=True)
            recipe = load_saved_recipe((folder / RECIPE_FILE).read_text(encoding="utf-8"), str(folder / RECIPE_FILE))
            return cls(
                folder,
                info["kind"],
                recipe,
                Charset.from_text(info["charset"]),
                info["memory_dim"],
                info["data"],
                info["clip"],
                info["clip_weights"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            advice = "Restore it from a copy, or train again into another folder"
            raise DamagedStore(f"{path} is damaged: {json_problem(error)}", advice) from error

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    def weights(self, which: Literal["best", "last"] = "best") -> dict[str, Tensor]:
        """Return the weights to use: the averaged ones when the run kept an average, of the best checkpoint.

        Raises:
            UserError: the run has no checkpoint yet. DamagedStore: a checkpoint file is damaged.
        """
        found, group, _ = self._trained(which)
        load_state(found, only=(group,))
        return {**self.untrained(), **load_tensors(found, group)}

    def weights_hash(self) -> str:
        """Return a hash of the files that :meth:`weights` reads, as their checkpoints record them: it loads none.

        Raises:
            UserError: the run has no checkpoint yet. DamagedStore: a checkpoint's state cannot be read.
        """
        untrained = find_checkpoint(checkpoint_folder(self.folder, "untrained"))
        hashes = [self._trained("best")[2], *(load_state(untrained, only=())["files"].values() if untrained else ())]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def _trained(self, which: Literal["best", "last"]) -> tuple[Path, str, str]:
        """Return the checkpoint that holds the weights to use, their group of tensors, and the hash of its file."""
        names: tuple[CheckpointName, ...] = ("best", "last") if which == "best" else ("last",)
        for name in names:
            found = find_checkpoint(checkpoint_folder(self.folder, name))
            if found is not None:
                files = load_state(found, only=())["files"]
                group = AVERAGE if file_of(AVERAGE) in files else MODEL
                if file_of(group) not in files:
                    raise DamagedStore(f"{found / STATE_FILE} names no {file_of(group)}", "Train again")
                return found, group, files[file_of(group)]
        raise UserError(f"{self.folder} has no checkpoint yet", "Train longer")

    def lexicon(self) -> Lexicon | None:
        """Return what :meth:`keep_lexicon` saved; None where there is none.

        Raises:
            DamagedStore: it cannot be read.
        """
        path = self.folder / LEXICON_FILE
        if not path.is_file():
            return None
        try:
            kept = checksummed.read_json(path)
            return Lexicon(kept["counts"], float(kept["weight"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedStore(f"{path} is damaged: {json_problem(error)}", "Train again") from error

    def keep_lexicon(self, lexicon: Lexicon | None) -> None:
        """Save, or remove, the words that the run's recogniser prefers."""
        path = self.folder / LEXICON_FILE
        if lexicon is None:
            path.unlink(missing_ok=True)
        else:
            checksummed.write_json(path, {"weight": lexicon.weight, "counts": dict(lexicon.counts)})

    def keep_untrained(self, tensors: dict[str, Tensor]) -> None:
        """Save, once, weights that belong to the model and that training does not touch, if there are any."""
        folder = checkpoint_folder(self.folder, "untrained")
        if tensors and find_checkpoint(folder) is None:
            save_checkpoint(folder, {MODEL: tensors}, {})

    def untrained(self) -> dict[str, Tensor]:
        """Return what :meth:`keep_untrained` saved; nothing where all of the model is trained.

        Raises:
            DamagedStore: the file is damaged.
        """
        found = find_checkpoint(checkpoint_folder(self.folder, "untrained"))
        if found is None:
            return {}
        load_state(found)
        return load_tensors(found, MODEL)

    def step(self) -> int:
        """Optimiser steps done so far."""
        found = find_checkpoint(checkpoint_folder(self.folder, "last"))
        return 0 if found is None else int(load_state(found, only=())["step"])


@dataclass(frozen=True)
class TrainingSummary:
    """Result of a training run.

    Attributes:
        out: the run's folder. rows: what it trained on. computed: rows drawn by this call.
        quarantined: inputs that were rejected or could not be read.
        steps: optimiser steps of the run, earlier calls' included. seconds: of this call.
        metrics: the newest validation's.
    """

    out: Path
    rows: int
    computed: int
    quarantined: int
    steps: int
    seconds: float
    metrics: dict[str, float]


def require_recogniser(model: Trained) -> None:
    """Raise :class:`UserError` unless a model reads images."""
    if model.kind != "finetune":
        raise UserError(
            f"{model.name} is a pre-trained decoder without an image encoder", "Fine-tune it first (`dptr finetune`)"
        )


def newest(folders: Sequence[Path], kind: RunKind | None = None) -> Run | None:
    """Return the last of ``folders`` (oldest first) that holds a run of this kind with weights; None without one.

    Unreadable folders and runs without a checkpoint are skipped with a note.
    """
    for folder in reversed(folders):
        try:
            run = Run.load(folder)
            if kind in (None, run.kind):
                run.weights_hash()
                return run
        except DptrError as error:
            note(f"skipped: {error.problem}")
    return None


def identity_digest(kind: RunKind, recipe: Recipe, data: dict[str, Any]) -> str:
    """Return a hash of what fixes a run: its settings but for those at their defaults, and its data."""
    fixed = [kind, recipe.defining(kind, without_defaults=True), data]
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def named_folder(runs: Path, kind: RunKind, data_name: str, digest: str) -> Path:
    """Return the folder in ``runs`` whose run has this identity, so that the same command resumes it; else a new one.

    A new one is called ``KIND-DATA-DATE-NUMBER``, and is not made.
    """
    for known in runs.glob(f"{kind}-*/{IDENTITY_FILE}"):
        try:
            if checksummed.read_json(known)["identity"] == digest:
                return known.parent
        except (DptrError, OSError, ValueError, KeyError, TypeError) as error:
            note(f"skipped: {known} cannot be read: {json_problem(error)}")
    day = time.strftime("%Y-%m-%d")
    data_name = re.sub(r"[^\w.]+", "-", data_name).strip("-.")[:40] or "data"
    folders = (runs / f"{kind}-{data_name}-{day}-{number}" for number in itertools.count(1))
    return next(one for one in folders if not (one / IDENTITY_FILE).exists() and not (one / RUN_FILE).exists())


def keep_identity(folder: Path, digest: str) -> None:
    """Save what :func:`named_folder` finds a run by."""
    if not (folder / IDENTITY_FILE).is_file():
        checksummed.write_json(folder / IDENTITY_FILE, {"identity": digest})


def start_or_continue(
    folder: Path,
    kind: RunKind,
    recipe: Recipe,
    charset: Charset,
    memory_dim: int,
    data: dict[str, Any],
    clip: str = "",
    clip_weights: str = "",
) -> Run:
    """Describe a new run, or check that an old one in ``folder`` is the same.

    ``clip`` and ``clip_weights`` are saved, not compared.

    Raises:
        DamagedStore: the folder holds a run of another recipe or of other data.
        UserError: another process trains into it.
    """
    wanted = Run(folder, kind, recipe, charset, memory_dim, data, clip, clip_weights)
    with locked(folder):
        if not (folder / RUN_FILE).is_file():
            _describe(wanted)
            return wanted
        known = Run.load(folder)
        _require_same(known, wanted)
        if known.recipe != recipe:
            _write_recipe(folder, recipe)
        return replace(known, recipe=recipe)


def _require_same(known: Run, wanted: Run) -> None:
    kind, differing = wanted.kind, list[str]()
    if known.kind != kind:
        differing.append("kind")
    elif keys := _differing_keys(known.recipe.defining(kind), wanted.recipe.defining(kind)):
        differing.append(f"recipe ({', '.join(keys)})")
    if known.charset != wanted.charset:
        differing.append("charset")
    if known.data != wanted.data:
        what = [named for key, named in _DATA.items() if known.data.get(key) != wanted.data.get(key)]
        differing.append(f"data ({', '.join(what)})" if what else "data")
    if not differing:
        return
    advice = "Choose another folder with -o, or go back to the old settings and stores"
    if differing == [f"data ({_DATA['from']})"]:
        advice = "Its start was trained further, or is another one: choose another folder with -o to start from it now"
    elif differing == [f"recipe ({kind}.steps)"] and kind != "pretrain":
        advice = f"To train it further, start another from it: --from {known.folder} -o OTHER"
    raise DamagedStore(
        f"{known.folder} holds a run whose {' and '.join(differing)} differ from the current ones", advice
    )


def _differing_keys(known: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return what differs between two recipes, as ``section.key``."""
    return [
        f"{section}.{key}"
        for section in sorted({*known, *wanted})
        for key in sorted({*known.get(section, {}), *wanted.get(section, {})})
        if known.get(section, {}).get(key) != wanted.get(section, {}).get(key)
    ]


def _describe(run: Run) -> None:
    _write_recipe(run.folder, run.recipe)
    from dptr import __version__

    info = {
        "kind": run.kind,
        "charset": run.charset.text,
        "memory_dim": run.memory_dim,
        "data": run.data,
        "clip": run.clip,
        "clip_weights": run.clip_weights,
        "versions": {"dptr": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    checksummed.write_json(run.folder / RUN_FILE, info)


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    checksummed.write_text(folder / RECIPE_FILE, f"{recipe_to_toml(recipe)}# {checksummed.WITHOUT_CHECKSUM}\n")


def charset_of_run(wanted: Charset, decoder: DecoderSettings, start: Trained | None = None) -> Charset:
    """Return the charset ``wanted`` in the order in which a run's decoder emits labels.

    A decoder that starts from one which was trained on right-to-left labels keeps that one's order. For others the kind
    of the decoder decides.
    """
    if start is None:
        return emitted_by(decoder.kind, wanted)
    if start.charset.runs_right_to_left and start.recipe.decoder.kind == decoder.kind:
        return wanted.emitted_in(start.charset.order)
    return emitted_by(decoder.kind, wanted.emitted_in(None))
