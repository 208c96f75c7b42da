"""A run's folder: what it was made from, so that it can go on, be read by other commands, and never be mixed up."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from dptr.cache.charset import Charset
from dptr.cache.errors import DamagedStore, DptrError, UserError
from dptr.cache.file_names import LEXICON_FILE, RECIPE_FILE, RUN_FILE, STATE_FILE
from dptr.cache.plain_json import what_is_wrong
from dptr.cache.progress import note
from dptr.cache.stores import sealed
from dptr.cache.stores.lock import locked
from dptr.cache.word_counts import Lexicon
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
from dptr.trainer.training.recipe import Recipe, load_saved_recipe, recipe_to_toml

RunKind = Literal["pretrain", "finetune", "clip"]

#: Versions of the rule that says which data is for validation; the last is that of new runs, the others are kept to.
#: 1, which no run goes on with, let the side of a row depend on how much data there was; the others are in
#: :mod:`dptr.cache.validation`.
_SPLITS: dict[RunKind, tuple[int, ...]] = {"pretrain": (2, 3, 4), "finetune": (2,), "clip": (2,)}
#: 1 shuffled an epoch's rows as one list; 2 is :mod:`dptr.trainer.data.keyed_permutation`.
_ORDER = 2
#: What the parts of a run's identity are called in errors.
_DATA = {
    "prompts": "prompt store",
    "orp": "ORP bank",
    "images": "labelled crops",
    "validation": "validation set",
    "from": "weights to start from",
    "encoder": "weights of the encoder",
}


class Trained(Protocol):
    """Weights with all that is needed to build their model again: a :class:`Run`, or a model file.

    Attributes:
        name: for people. kind: the stage that made it. recipe: as resolved. charset: of its decoder.
        memory_dim: width of the memory its decoder reads. data: identities of what it was trained on.
        clip: name of the CLIP that embedded its text; empty where that is not known.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> RunKind: ...  # noqa: D102
    @property
    def recipe(self) -> Recipe: ...  # noqa: D102
    @property
    def charset(self) -> Charset: ...  # noqa: D102
    @property
    def memory_dim(self) -> int: ...  # noqa: D102
    @property
    def data(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def clip(self) -> str: ...  # noqa: D102

    def weights(self) -> dict[str, Tensor]:
        """Return the weights to use, by name."""
        ...

    def weights_hash(self) -> str:
        """Return a hash that changes whenever :meth:`weights` does."""
        ...

    def lexicon(self) -> Lexicon | None:
        """Return the words that its recogniser prefers; None without any."""
        ...


@dataclass(frozen=True)
class Run:
    """A training run on disk.

    Attributes:
        folder: where it is. kind: which stage made it. recipe: as resolved. charset: of its decoder.
        memory_dim: width of the memory its decoder reads.
        data: identities of what it was trained on. split: version of the rule that says which data is for validation.
        order: version of the rule that says which rows make a batch.
        clip: name of the CLIP that embedded its text; empty where that is not known.
        clip_weights: hash of that CLIP's weights, by which it is known; empty for runs of earlier versions.
    """

    folder: Path
    kind: RunKind
    recipe: Recipe
    charset: Charset
    memory_dim: int
    data: dict[str, Any]
    split: int = 2
    clip: str = ""
    clip_weights: str = ""
    order: int = _ORDER

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
            info = sealed.read_json(path)
            sealed.require_sealed(folder / RECIPE_FILE, needed=info.get("format_version", 1) > 1)
            recipe = load_saved_recipe((folder / RECIPE_FILE).read_text(encoding="utf-8"), str(folder / RECIPE_FILE))
            return cls(
                folder,
                info["kind"],
                recipe,
                Charset.from_text(info["charset"]),
                info["memory_dim"],
                info["data"],
                info.get("split", 1),
                info.get("clip") or _clip_of_former(info["data"]),
                info.get("clip_weights", ""),
                info.get("order", 1),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            advice = "Restore it from a copy, or train again into another folder"
            raise DamagedStore(f"{path} is damaged: {what_is_wrong(error)}", advice) from error

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
        raise UserError(f"{self.folder} has no checkpoint yet", "Let it train further")

    def lexicon(self) -> Lexicon | None:
        """Return what :meth:`keep_lexicon` saved; None where there is none.

        Raises:
            DamagedStore: it cannot be read.
        """
        path = self.folder / LEXICON_FILE
        if not path.is_file():
            return None
        try:
            kept = sealed.read_json(path)
            return Lexicon(kept["counts"], float(kept["weight"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedStore(f"{path} is damaged: {what_is_wrong(error)}", "Train again") from error

    def keep_lexicon(self, lexicon: Lexicon | None) -> None:
        """Save, or remove, the words that the run's recogniser prefers."""
        path = self.folder / LEXICON_FILE
        if lexicon is None:
            path.unlink(missing_ok=True)
        else:
            sealed.write_json(path, {"weight": lexicon.weight, "counts": dict(lexicon.counts)})

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

    def require_recogniser(self) -> None:
        """Raise :class:`UserError` unless this run made something that reads images."""
        if self.kind == "pretrain":
            raise UserError(
                f"{self.folder} is a pre-trained decoder, which cannot see", "Fine-tune it first (`dptr finetune`)"
            )
        if self.kind == "clip":
            raise UserError(f"{self.folder} is a CLIP, which does not read", f"Use it as --clip {self.folder / 'clip'}")

    def step(self) -> int:
        """Optimiser steps done so far."""
        found = find_checkpoint(checkpoint_folder(self.folder, "last"))
        return 0 if found is None else int(load_state(found, only=())["step"])


def newest(folders: Sequence[Path], kind: RunKind) -> Run | None:
    """Return the last of ``folders`` (oldest first) that holds a run of this kind with weights; None without one.

    Folders that cannot be read, and runs that have no checkpoint, are passed over and named.
    """
    for folder in reversed(folders):
        try:
            run = Run.load(folder)
            if run.kind == kind:
                run.weights_hash()
                return run
        except DptrError as error:
            note(f"passed over: {error.problem}")
    return None


def default_name(kind: RunKind, recipe: Recipe, data: dict[str, Any]) -> str:
    """Name a run by what fixes it, so that the same command finds the same run and goes on."""
    fixed = [_SPLITS[kind][0], recipe.defining(kind, without_defaults=True), data]
    digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
    return f"{kind}-{recipe.decoder.kind}-{digest[:8]}"


def start_or_continue(
    folder: Path,
    kind: RunKind,
    recipe: Recipe,
    charset: Charset,
    memory_dim: int,
    data: dict[str, Any],
    former_data: dict[str, Any] | None = None,
    clip: str = "",
    clip_weights: str = "",
) -> Run:
    """Describe a new run, or check that an old one in ``folder`` is the same.

    ``former_data`` is the same data as earlier versions saved it; ``clip`` and ``clip_weights`` are saved, not
    compared.

    Raises:
        DamagedStore: the folder holds a run of another recipe or of other data.
        UserError: another process trains into it.
    """
    split = _SPLITS[kind][-1]
    wanted = Run(folder, kind, recipe, charset, memory_dim, data, split, clip, clip_weights)
    with locked(folder):
        if not (folder / RUN_FILE).is_file():
            _describe(wanted)
            return wanted
        known = Run.load(folder)
        _require_same(known, wanted, former_data)
        if known.order != _ORDER and 0 < known.step() < getattr(recipe, kind).steps:
            note(f"{folder} was begun by an earlier dptr: from here on its batches come in another order")
        if known.recipe != recipe:
            _write_recipe(folder, recipe)
        return replace(known, recipe=recipe)


def _require_same(known: Run, wanted: Run, former_data: dict[str, Any] | None) -> None:
    kind = wanted.kind
    # Steps of both ways in one run would train on what it was validated with.
    is_finished = known.step() >= getattr(wanted.recipe, kind).steps
    same = {
        "kind": known.kind == kind,
        "recipe": known.recipe.defining(kind) == wanted.recipe.defining(kind),
        "way of choosing validation data": is_finished or known.split in _SPLITS[kind],
        "charset": known.charset == wanted.charset,
        "data": known.data in (wanted.data, former_data),
    }
    differing = [name for name, is_same in same.items() if not is_same]
    if "recipe" in differing:
        keys = _differing_keys(known.recipe.defining(kind), wanted.recipe.defining(kind))
        differing[differing.index("recipe")] = f"recipe ({', '.join(keys)})"
    if "data" in differing:
        what = [named for key, named in _DATA.items() if known.data.get(key) != wanted.data.get(key)]
        differing[differing.index("data")] = f"data ({', '.join(what)})" if what else "data"
    if differing == [f"data ({_DATA['from']})"]:
        raise DamagedStore(
            f"{known.folder} holds a run that started from other weights than those that --from names now",
            "Choose another folder with -o to start from the new weights",
        )
    if differing:
        longer = differing == [f"recipe ({kind}.steps)"] and kind != "pretrain"
        raise DamagedStore(
            f"{known.folder} holds a run whose {' and '.join(differing)} differ from what is asked for now",
            f"To train it further, start another from it: --from {known.folder} -o OTHER"
            if longer
            else "Choose another folder with -o, or go back to the old settings and stores",
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
        "split": run.split,
        "order": run.order,
        "versions": {"dptr": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    sealed.write_json(run.folder / RUN_FILE, info)


def _clip_of_former(data: dict[str, Any]) -> str:
    """Return the CLIP's name where the first version kept it: with the prompt store's identity."""
    prompts = data.get("prompts")
    return str(prompts.get("encoder", "")) if isinstance(prompts, dict) else ""


def _write_recipe(folder: Path, recipe: Recipe) -> None:
    sealed.write_text(folder / RECIPE_FILE, f"{recipe_to_toml(recipe)}# {sealed.UNSEALED}\n")
