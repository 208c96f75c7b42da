"""A model on the Hugging Face hub: its file, its page and its recipe in one commit."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from dptr.cache import hub
from dptr.cache.errors import UserError
from dptr.cache.file_names import RECIPE_FILE, WEIGHTS_FILE
from dptr.cache.progress import note
from dptr.trainer.export.export import export
from dptr.trainer.export.model_card import model_card
from dptr.trainer.recipe import recipe_to_toml
from dptr.trainer.training.runs import Trained

_CARD = "README.md"


@dataclass(frozen=True)
class Pushed:
    """What was pushed: the page's address, the commit, the names of files and their bytes in all."""

    url: str
    commit: str
    files: list[str]
    size: int


def write_files(model: Trained, repo: str, predictions: Path, out: Path, licence: str | None, half: bool) -> list[Path]:
    """Write what a repository holds into a folder.

    Args:
        model: a recogniser, or a pre-trained decoder. repo: its hub id.
        predictions: the folder that holds what ``dptr evaluate`` read with it.
        out: the folder. licence: its identifier on the hub. half: floats in 16 bits.

    Raises:
        UserError: ``repo`` is no hub id.
    """
    if not hub.is_id(repo) or "@" in repo:
        raise UserError(f"{repo} is no name on the hub", "Give USER/MODEL")
    export(model, "safetensors", out / WEIGHTS_FILE, half=half)
    (out / _CARD).write_text(model_card(model, repo, predictions, licence), encoding="utf-8")
    (out / RECIPE_FILE).write_text(recipe_to_toml(model.recipe), encoding="utf-8")
    return [out / name for name in (WEIGHTS_FILE, _CARD, RECIPE_FILE)]


def push(
    model: Trained, repo: str, predictions: Path, private: bool = False, licence: str | None = None, half: bool = False
) -> Pushed:
    """Make the repository where it is not there, and put the model into it; arguments as of :func:`write_files`.

    Raises:
        UserError: as :func:`write_files`; or the hub cannot be reached, or does not take it.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    with tempfile.TemporaryDirectory(prefix="dptr-push-") as folder:
        files = write_files(model, repo, predictions, Path(folder), licence, half)
        size = sum(path.stat().st_size for path in files)
        note(f"pushing {size / 1e6:.1f} MB to {repo}")
        api = HfApi(library_name="dptr")
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            added = [CommitOperationAdd(path.name, str(path)) for path in files]
            done = api.create_commit(repo, added, commit_message=f"{model.name}, pushed by dptr")
        # What a proxy, an endpoint or a setting can raise here belongs to the client's own libraries.
        except Exception as error:
            raise UserError(
                f"the hub did not take {repo}: {hub.first_line(error)}",
                "Log in with a token that may write (`hf auth login`, or HF_TOKEN), and check the network",
            ) from error
    return Pushed(done.commit_url, str(done.oid), [path.name for path in files], size)
