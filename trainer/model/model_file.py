"""A trained model as one safetensors file: weights, and in its header all that is needed to build the model again."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dptr.cache.charset import Charset
from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.stores.files import atomic_path
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.training.recipe import load_saved_recipe, recipe_to_toml
from dptr.trainer.training.runs import Run

SUFFIX = ".safetensors"


def save_model(run: Run, path: Path) -> None:
    """Write a run's weights with its kind, recipe, charset and memory width in the header."""
    header = {
        "format": "pt",
        "dptr_kind": run.kind,
        "dptr_recipe": recipe_to_toml(run.recipe),
        "dptr_charset": run.charset.characters,
        "dptr_memory_dim": str(run.memory_dim),
    }
    weights = {name: tensor.contiguous() for name, tensor in run.weights().items()}
    with atomic_path(path) as temporary:
        save_file(weights, temporary, header)


def load_model(path: Path, device: str = "cpu") -> Recognizer:
    """Build the recogniser that :func:`save_model` wrote, in evaluation mode.

    Raises:
        UserError: the file holds something else. DamagedStore: it cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedStore(f"{path} cannot be read ({error})", "Export it again") from error
    if header.get("dptr_kind") != "finetune":
        raise UserError(f"{path} holds no recogniser", "Export a fine-tuning run: `dptr export RUN --to safetensors`")
    recipe = load_saved_recipe(header["dptr_recipe"], str(path))
    recognizer = Recognizer(recipe, Charset(header["dptr_charset"]), int(header["dptr_memory_dim"]))
    recognizer.load_state_dict(weights)
    return recognizer.to(device).eval()
