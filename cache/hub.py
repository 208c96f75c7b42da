"""The Hugging Face Hub: a model's files by its id, downloaded now or earlier.

One request with a short timeout checks whether the hub can be reached: its client would retry for half a minute on
machines without network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from dptr.cache.errors import UserError
from dptr.cache.progress import is_quiet, note

_SECONDS_TO_ANSWER = 5.0
#: ``user/model``, optionally with ``@REVISION``.
_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\S+)?")
_CACHED = re.compile(r"models--(\w[\w.-]*)")


def is_id(name: str) -> bool:
    """Return whether a name has the form of a hub id, ``user/model`` or ``user/model@REVISION``."""
    return _ID.fullmatch(name) is not None


def name_of(path: Path) -> str:
    """Return a model's name: its hub id if it was downloaded, else the file's name."""
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
        require: called with the names of the model's files; raises if they are not the expected ones.
        instead: advice if the hub cannot be reached.
        token, cache_dir, force_download, local_files_only: as of ``huggingface_hub.snapshot_download``.

    Raises:
        UserError: the hub has no such model, or cannot be reached and the model was not downloaded earlier.
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
    # Proxies, endpoints and settings raise errors of the client's libraries here.
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
    # The client passes on errors of its libraries, which differ between versions.
    except Exception as error:
        raise UserError(
            f"downloading {name} failed: {first_line(error)}", "Run the same command again to resume it"
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
    """Return the first line of an error's text, or its class name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
