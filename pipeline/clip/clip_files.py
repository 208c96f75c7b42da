"""Where a CLIP's files come from: the bundled model, a directory, or the hub.

Each ends as a directory, so that only this file uses the network. One request with a short limit decides
whether the hub can be reached: the clients retry for half a minute, and a machine without network is an ordinary one.
"""

from __future__ import annotations

from pathlib import Path

from dptr.cache.errors import UserError
from dptr.cache.file_names import MODEL_CONFIG_FILE, SAFETENSORS, WEIGHTS_FILE
from dptr.cache.progress import note
from dptr.pipeline.clip import bundled as bundled_clip

_SECONDS_TO_ANSWER = 5.0
_DESCRIPTIONS = ["*.json", "*.txt", "*.model"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_CONVERT = (
    "Convert them to safetensors where you trust them, or name a revision of the hub that has it "
    "(NAME@refs/pr/NUMBER, see the model's pull requests)"
)


def find_clip(name: str) -> Path:
    """Return a directory with a CLIP's files.

    Args:
        name: ``tiny``, a directory that transformers saved, or a hub id such as ``openai/clip-vit-base-patch16``; a hub
            id may end in ``@REVISION``.

    Raises:
        UserError: there is no such directory, or the hub cannot give it and did not give it earlier.
    """
    if name == bundled_clip.NAME:
        return bundled_clip.BUNDLED
    if Path(name).exists() or not _looks_like_hub_id(name):
        if not (Path(name) / MODEL_CONFIG_FILE).is_file():
            raise UserError(
                f"{name} holds no CLIP (no {MODEL_CONFIG_FILE})",
                "Give a directory saved by transformers, a hub id, or `tiny`",
            )
        return Path(name)
    return _from_hub(name)


def require_safetensors(folder: Path) -> None:
    """Check that a directory has weights that are data alone: a pickle can run any code when it is loaded.

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


def _from_hub(name_and_revision: str) -> Path:
    """Return the files of a hub id: as the hub has them now, or as downloaded before when it cannot be reached."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    name, _, asked = name_and_revision.partition("@")
    revision = asked or None
    try:
        answer = HfApi().model_info(name, revision=revision, timeout=_SECONDS_TO_ANSWER)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"the hub has no model {name_and_revision!r}", "Check the name, or log in if it is private"
        ) from error
    # What a proxy, an endpoint or a setting can raise here belongs to the client's own libraries.
    except Exception as error:
        return _downloaded_before(name, revision, error)
    if not any(_is_safetensors(file.rfilename) for file in answer.siblings or []):
        raise UserError(f"the hub has {name_and_revision} in pickled weights only, which are never loaded", _CONVERT)
    try:
        return Path(snapshot_download(name, revision=answer.sha, allow_patterns=[*_DESCRIPTIONS, f"*{SAFETENSORS}"]))
    except OSError as error:
        raise UserError(
            f"downloading {name} broke off: {_first_line(error)}", "Run the same command again; it goes on"
        ) from error


def _downloaded_before(name: str, revision: str | None, reason: Exception) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception as error:
        raise UserError(
            f"{name} is not on this machine and the hub cannot be reached ({_first_line(reason)})",
            "Give a directory with the model's files, check the network, or use --clip tiny",
        ) from error
    note(f"the hub cannot be reached; using {name} as it was downloaded before")
    return folder


def _is_safetensors(name: str) -> bool:
    return name.endswith(SAFETENSORS) and "/" not in name


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
