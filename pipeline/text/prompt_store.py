"""A prompt store's manifest: started for a text tower, or opened again for the very same one.

States of different encoders, templates or formats must never stand in one store, and what differs is told before the
corpus is read, not after.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dptr.cache.charset import Charset
from dptr.cache.errors import DamagedStore
from dptr.cache.file_names import MANIFEST_FILE, PREFIX_FILE
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.manifest import FileRecord, Manifest
from dptr.cache.stores.shards import States, write_states
from dptr.pipeline.clip.text_tower import TextTower

_LONGEST_SHOWN = 40


def open_prompt_store(folder: Path, identity: Mapping[str, Any]) -> Manifest:
    """Open the store in ``folder``, or start one; its charset is settled by :func:`settle_charset`.

    Raises:
        DamagedStore: there is a store of another identity; the message names what differs.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return Manifest("prompts", dict(identity))
    manifest = Manifest.load(folder, "prompts")
    _require_equal(folder, manifest.identity, identity)
    return manifest


def settle_charset(folder: Path, manifest: Manifest, charset: Charset, learnt: bool) -> None:
    """Give a new store its charset, or check that an old one has the same.

    A learnt charset only ever grows with its corpus: the labels that are there still fit.

    Raises:
        DamagedStore: the store's charset is another.
    """
    characters = charset.characters
    known = manifest.identity.get("charset", "")
    if learnt:
        characters = "".join(sorted({*characters, *known}))
    elif known:
        _require_equal(folder, manifest.identity, {"charset": characters})
    manifest.identity["charset"] = characters


def write_prefix(folder: Path, manifest: Manifest, tower: TextTower) -> None:
    """Write the states that all prompts share and commit them, unless that is done."""
    if PREFIX_FILE in manifest.files:
        return
    states = States(tower.prefix, np.array([len(tower.prefix)]), np.zeros((1, tower.prefix.shape[1]), np.float32))
    with atomic_path(folder / PREFIX_FILE) as path:
        write_states(path, states, "float32")
    manifest.files[PREFIX_FILE] = FileRecord.of(folder / PREFIX_FILE)
    manifest.save(folder)


def _require_equal(folder: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    differing = [
        f"{name}: {_shown(stored.get(name))} there, {_shown(value)} now"
        for name, value in asked.items()
        # The same weights may go by several names (two paths, a hub id): their hash tells.
        if name != "encoder" and stored.get(name) != value
    ]
    if differing:
        raise DamagedStore(
            f"{folder} holds a store with other settings ({'; '.join(differing)})",
            "Use the same settings, another folder with -o, or move the old store away",
        )


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
