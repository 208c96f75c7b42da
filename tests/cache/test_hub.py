"""Models of the hub: a download that breaks off is one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dptr.cache import hub
from dptr.cache.errors import UserError


class ClientError(Exception):
    """One of a library that the client uses: no OSError."""


def test_a_download_that_breaks_off_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(*_: Any, **__: Any) -> str:
        raise ClientError("peer closed connection\nwithout sending the complete body")

    client = SimpleNamespace(model_info=lambda *_, **__: SimpleNamespace(siblings=[]), snapshot_download=break_off)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: client)
    with pytest.raises(UserError, match=r"failed: peer closed connection\. Run the same command again"):
        hub.download("someone/clip", ["*"])
