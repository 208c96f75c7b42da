"""The Hugging Face hub: a model's files by its id, as the hub has them now, or as they were downloaded before.

Each ends as a directory. One request with a short limit decides whether the hub can be reached: the clients retry for
half a minute, and a machine without network is an ordinary one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from dptr.cache.errors import UserError
from dptr.cache.progress import is_quiet, note

_SECONDS_TO_ANSWER = 5.0
#: A user or organisation, a model of theirs, and maybe a revision.
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\S+)?")
_CACHED = re.compile(r"models--(\w[\w.-]*)")


def is_id(name: str) -> bool:
    """Return whether a name can be that of a user's model on the hub, as ``user/model`` or ``user/model@REVISION``."""
    return _ID.fullmatch(name) is not None


def name_of(path: Path) -> str:
    """Return what a model is called: by its hub id where it was downloaded, or by the file's name."""
    parts = [found[1] for part in path.parts if (found := _CACHED.fullmatch(part))]
    return parts[-1] if parts else path.stem


def download(
    name_and_revision: str,
    patterns: Sequence[str],
    require: Callable[[list[str]], None] = lambda files: None,
    instead: str = "check the network",
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Return a directory with those files of a model that match ``patterns``.

    Args:
        name_and_revision: a hub id, which may end in ``@REVISION``. patterns: of files, such as ``*.json``.
        require: raises unless the model's files, which it is given by name, are those that are wanted.
        instead: what else can be done where the hub cannot be reached.
        token, cache_dir, force_download, local_files_only: as of ``huggingface_hub.snapshot_download``.

    Raises:
        UserError: the hub has no such model, or cannot give it and did not give it earlier.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if is_quiet():
        disable_progress_bars()
    hub = HfApi(token=token, library_name="dptr")
    name, _, asked = name_and_revision.partition("@")
    revision = asked or None
    if local_files_only:
        return _downloaded_before(name, revision, patterns, None, instead, cache_dir)
    try:
        answer = hub.model_info(name, revision=revision, timeout=_SECONDS_TO_ANSWER)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UserError(
            f"the hub has no model {name_and_revision!r}", "Check the name, or log in if it is private"
        ) from error
    # What a proxy, an endpoint or a setting can raise here belongs to the client's own libraries.
    except Exception as error:
        return _downloaded_before(name, revision, patterns, error, instead, cache_dir)
    require([file.rfilename for file in answer.siblings or []])
    try:
        return Path(
            hub.snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(patterns),
                cache_dir=cache_dir,
                force_download=force_download,
            )
        )
    # The client lets the errors of its own libraries through, which differ between its versions.
    except Exception as error:
        raise UserError(
            f"downloading {name} broke off: {first_line(error)}", "Run the same command again to resume it"
        ) from error


def _downloaded_before(
    name: str,
    revision: str | None,
    patterns: Sequence[str],
    reason: Exception | None,
    instead: str,
    cache_dir: str | Path | None,
) -> Path:
    from huggingface_hub import snapshot_download

    why = f" and the hub cannot be reached ({first_line(reason)})" if reason else ""
    try:
        snapshot = snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), cache_dir=cache_dir, local_files_only=True
        )
    except Exception as error:
        raise UserError(
            f"{name} is not on this machine{why}", f"Give a directory with the model's files, or {instead}"
        ) from error
    if reason:
        note(f"the hub cannot be reached; using {name} as it was downloaded before")
    return Path(snapshot)


def first_line(error: Exception) -> str:
    """Return the first line that an error says, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
