"""Models of the hub: an incomplete file is downloaded again, and a download that breaks off is one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dptr.cache import hub
from dptr.cache.errors import UserError

CONTENT = {"config.json": b"{}", "model.safetensors": b"weights"}


class ClientError(Exception):
    """One of a library that the client uses: no OSError."""


class Hub:
    """The hub's client, with files on this machine that an earlier download left."""

    def __init__(self, folder: Path, given: dict[str, bytes]) -> None:
        self.folder, self.given = folder, given
        self.downloaded: list[str] = []

    def model_info(self, name: str, files_metadata: bool = False, **_: Any) -> Any:
        sizes = {file: len(content) if files_metadata else None for file, content in CONTENT.items()}
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file, size=size) for file, size in sizes.items()])

    def snapshot_download(self, name: str, **_: Any) -> str:
        for file in CONTENT:
            if not (self.folder / file).exists():
                self.hf_hub_download(name, file)
        return str(self.folder)

    def hf_hub_download(self, name: str, file: str, **_: Any) -> None:
        self.downloaded.append(file)
        (self.folder / file).write_bytes(self.given[file])


@pytest.fixture(name="connect")
def _connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, bytes]], Hub]:
    def connect(given: dict[str, bytes]) -> Hub:
        client = Hub(tmp_path, given)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: client)
        return client

    return connect


def test_an_incomplete_file_is_downloaded_again(connect: Callable[[dict[str, bytes]], Hub], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONTENT["config.json"])
    (tmp_path / "model.safetensors").write_bytes(b"wei")
    client = connect(CONTENT)
    assert hub.download("someone/clip", ["*"]) == tmp_path
    assert (tmp_path / "model.safetensors").read_bytes() == CONTENT["model.safetensors"]
    assert client.downloaded == ["model.safetensors"]
    hub.download("someone/clip", ["*"])
    assert client.downloaded == ["model.safetensors"]


def test_a_file_that_the_hub_gives_in_part_is_an_error(connect: Callable[[dict[str, bytes]], Hub]) -> None:
    connect({**CONTENT, "model.safetensors": b"we"})
    with pytest.raises(UserError, match=r"a part of model\.safetensors of someone/clip\. Run the same command again"):
        hub.download("someone/clip", ["*"])


def test_a_download_that_breaks_off_is_one_line(
    connect: Callable[[dict[str, bytes]], Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(CONTENT)

    def break_off(*_: Any, **__: Any) -> str:
        raise ClientError("peer closed connection\nwithout sending the complete body")

    monkeypatch.setattr(client, "snapshot_download", break_off)
    with pytest.raises(UserError, match=r"broke off: peer closed connection\. Run the same command again"):
        hub.download("someone/clip", ["*"])
