"""What all rows of a prompt store share: the tower they come from, the charset and the states before a label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dptr.cache.charset import Charset
from dptr.cache.file_names import PREFIX_FILE
from dptr.cache.stores.file_record import FileRecord
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.shards import States, write_states
from dptr.pipeline.clip.loading import load_clip
from dptr.pipeline.clip.text_tower import TextTower
from dptr.pipeline.text.embed_settings import EmbedTextSettings
from dptr.pipeline.text.templates import Template


def settle_charset(folder: Path, manifest: Manifest, charset: Charset, learnt: bool) -> None:
    """Give a new store its charset, or check that an old one has the same.

    A learnt charset only ever grows with its corpus: the labels that are there still fit.

    Raises:
        DamagedStore: the store's charset is another.
    """
    known = Charset.from_text(manifest.identity["charset"]) if manifest.identity.get("charset") else None
    if known is not None:
        # One that an earlier version began emits what runs from right to left as it is written, and goes on so.
        charset = Charset(charset.characters, charset.units, known.order)
        if learnt and charset.units == known.units:
            charset = charset.with_more(known.characters)
        manifest.require_equal(folder, {} if learnt and charset.units == known.units else {"charset": charset.text})
    manifest.identity["charset"] = charset.text


def write_prefix(folder: Path, manifest: Manifest, tower: TextTower) -> None:
    """Write the states that all prompts share and commit them, unless that is done."""
    if PREFIX_FILE in manifest.files:
        return
    write_prefix_states(folder / PREFIX_FILE, tower)
    manifest.files[PREFIX_FILE] = FileRecord.of(folder / PREFIX_FILE)
    manifest.save(folder)


def write_prefix_states(path: Path, tower: TextTower) -> None:
    """Write the states that all prompts share into a file."""
    states = States(tower.prefix, np.array([len(tower.prefix)]), np.zeros((1, tower.prefix.shape[1]), np.float32))
    with atomic_path(path) as temporary:
        write_states(temporary, states, "float32")


def load_tower(settings: EmbedTextSettings) -> tuple[TextTower, dict[str, Any], float]:
    """Return the tower, the identity of its states, and the seconds that loading took."""
    clip = load_clip(settings.clip, settings.precision, settings.device)
    tower = TextTower(clip, Template(settings.template), settings.states, settings.context)
    identity: dict[str, Any] = {
        **clip.identity(),
        "tokenizer": clip.tokenizer_hash,
        "template": settings.template,
        "states": tower.states,
        "context": settings.context,
        "precision": settings.precision,
        "dtype": settings.dtype,
        "case": settings.corpus.case,
        "normalization": settings.corpus.normalization.identity(),
        "prefix_ids": tower.prefix_ids,
        **({"padding": clip.padding} if settings.context == "full" else {}),
    }
    return tower, identity, clip.load_seconds
