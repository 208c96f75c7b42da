"""A trained model as one safetensors file: weights, an optional lexicon, and a header from which the model is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dptr.cache import hub
from dptr.cache.choices import BUNDLED_RECOGNISERS
from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import WEIGHTS_FILE
from dptr.cache.printing import json_problem
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import atomic_path, sha256_of
from dptr.cache.text.charset import Charset
from dptr.cache.text.lexicon import DEFAULT_WEIGHT, Lexicon, pack, unpack
from dptr.trainer.model.recognizer import RunKind, Trained
from dptr.trainer.recipe import WIDEST, Recipe, load_saved_recipe, recipe_to_toml

#: The recognisers that are installed with the package; their model cards lie beside them.
RECOGNISERS = {
    name: Path(__file__).parent / "bundled" / f"{file}.safetensors"
    for name, file in zip(BUNDLED_RECOGNISERS, ("english", "scripts"), strict=True)
}
#: The one that reads where none is named.
BUNDLED = RECOGNISERS["bundled"]
#: The tensor, uint8, of the words that a recogniser prefers.
_WORDS = "words"
_WEIGHT = "dptr_words_weight"


@dataclass(frozen=True)
class ModelFile:
    """A model file's description; attributes as of :class:`dptr.trainer.model.recognizer.Trained`."""

    path: Path
    kind: RunKind
    recipe: Recipe
    charset: Charset
    memory_dim: int

    @classmethod
    def open(cls, path: Path) -> ModelFile:
        """Check the checksum of what :func:`save_model` wrote and read its header.

        Raises:
            UserError: the file holds something else. DamagedStore: it cannot be read.
        """
        header = _header(path)
        try:
            recipe = load_saved_recipe(header["dptr_recipe"], str(path))
            charset, memory_dim = Charset.from_text(header["dptr_charset"]), int(header["dptr_memory_dim"])
            if not 0 < memory_dim <= WIDEST:
                raise ValueError(f"a memory {memory_dim} wide")
            return cls(path, header["dptr_kind"], recipe, charset, memory_dim)  # type: ignore[arg-type]
        except KeyError as error:
            raise UserError(f"{path} was not written by dptr", "Export a run: --to safetensors") from error
        except ValueError as error:
            raise DamagedStore(f"{path} is damaged: {json_problem(error)}", "Export it again") from error

    @property
    def name(self) -> str:
        """The file's name, or the model's on the hub."""
        return self.path.name if hub.name_of(self.path) == self.path.stem else hub.name_of(self.path)

    @property
    def clip(self) -> str:
        """Not kept in the file."""
        return ""

    @property
    def data(self) -> dict[str, Any]:
        """The file's hash stands for what it was trained on."""
        return {"sha256": sha256_of(self.path)}

    def weights(self) -> dict[str, Tensor]:
        """Return all tensors by name, of the shape and in the precision in which they are stored."""
        return {name: tensor for name, tensor in load_file(self.path).items() if name != _WORDS}

    def weights_hash(self) -> str:
        """Return the SHA-256 of the file."""
        return sha256_of(self.path)

    def lexicon(self) -> Lexicon | None:
        """Return the words that its recogniser prefers where a picture leaves doubt."""
        with safe_open(self.path, "pt") as file:
            if _WORDS not in file.keys():  # noqa: SIM118
                return None
            weight = float((file.metadata() or {}).get(_WEIGHT, DEFAULT_WEIGHT))
            return Lexicon(unpack(file.get_tensor(_WORDS).numpy()), weight)


def save_model(run: Trained, path: Path, half: bool = False, words: Lexicon | None = None) -> None:
    """Write a model's weights with its kind, recipe, charset and memory width in the header.

    Args:
        run: what to write. path: the file.
        half: store floats in 16 bits, half the size; they are widened when the model is built.
        words: kept for :meth:`ModelFile.lexicon`.
    """
    header = {
        "format": "pt",
        "dptr_kind": run.kind,
        "dptr_recipe": recipe_to_toml(run.recipe),
        "dptr_charset": run.charset.text,
        "dptr_memory_dim": str(run.memory_dim),
        **checksummed.METADATA,
    }
    weights = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in finite_weights(run).items()
    }
    unfit = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if unfit:
        raise UserError(f"{unfit[0]} of {run.name} does not fit into 16 bits", "Export without --half")
    if words:
        weights[_WORDS] = torch.from_numpy(pack(words.counts).copy())
        header[_WEIGHT] = f"{words.weight:g}"
    with atomic_path(path) as temporary:
        save_tensors(weights, temporary, header)
        checksummed.checksum(temporary)


def finite_weights(run: Trained) -> dict[str, Tensor]:
    """Return a model's weights by name.

    Raises:
        UserError: a value is not finite.
    """
    weights = run.weights()
    for name, tensor in weights.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{name} of {run.name} holds values that are not finite: its training diverged",
                "Train again, with a lower learning rate or gradient clipping",
            )
    return weights


def from_hub(name: str, **how: Any) -> Path:
    """Return a model's file from the hub, downloaded where it was not before; ``name`` as ``user/model[@REVISION]``.

    ``how`` as of :func:`dptr.cache.hub.download`.

    Raises:
        UserError: the hub has no such model, cannot be reached, or the model is none of dptr's.
    """

    def require(files: list[str]) -> None:
        if WEIGHTS_FILE not in files:
            raise UserError(f"{name} on the hub holds no {WEIGHTS_FILE}", "Name a model that `dptr push` put there")

    path = hub.download(name, [WEIGHTS_FILE], require, **how) / WEIGHTS_FILE
    require([WEIGHTS_FILE] if path.is_file() else [])
    return path


def _header(path: Path) -> dict[str, str]:
    checksummed.require_checksum(path)
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DamagedStore(f"{path} cannot be read ({error})", "Export it again") from error
    version = header.get("dptr_format_version")
    if version is None:
        raise UserError(f"{path} was not written by dptr", "Export a run: --to safetensors")
    if version != str(checksummed.FORMAT_VERSION):
        raise UserError(
            f"{path} has format version {version[:20]!r}, this dptr reads {checksummed.FORMAT_VERSION}", "Update dptr"
        )
    checksummed.require_checksum(path, needed=True)
    return header


def save_tensors(tensors: dict[str, Tensor], path: Path, header: dict[str, str] | None = None) -> None:
    """Write tensors, each contiguous, and a header of text to ``path``."""
    path.touch()
    mode = path.stat().st_mode
    # The library writes a private file of its own and renames it.
    save_file(tensors, path, header)
    path.chmod(mode)
