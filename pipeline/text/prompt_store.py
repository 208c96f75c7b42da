"""What all rows of a prompt store share: its charset and the states before a label."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dptr.cache.charset import Charset
from dptr.cache.file_names import PREFIX_FILE
from dptr.cache.stores.file_record import FileRecord
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.shards import States, write_states
from dptr.pipeline.clip.text_tower import TextTower


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
        manifest.require_equal(folder, {"charset": characters})
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
