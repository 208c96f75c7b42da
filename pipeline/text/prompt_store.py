"""What all rows of a prompt store share: the tower they come from, the charset and the states before a label."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dptr.cache.charset import Charset
from dptr.cache.file_names import MANIFEST_FILE, PREFIX_FILE
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.manifest import FileRecord, Manifest
from dptr.cache.stores.shards import States, write_states
from dptr.pipeline.clip.loading import load_clip
from dptr.pipeline.text.corpus import AUTO, CorpusSettings
from dptr.pipeline.text.embed_settings import EmbedTextSettings
from dptr.pipeline.text.prompt_towers import PromptTowers
from dptr.pipeline.text.templates import as_stored


def with_charset_of(folder: Path, corpus: CorpusSettings) -> CorpusSettings:
    """Return the settings for going on with the store in ``folder``, if there is one.

    Where it was begun with the charset as it is named, nothing is added to that: see :meth:`Normalization.charset`.
    """
    if not isinstance(corpus.charset, str) or corpus.charset == AUTO or not (folder / MANIFEST_FILE).is_file():
        return corpus
    named, kept = Charset.named(corpus.charset), Manifest.load(folder, "prompts").identity.get("charset")
    return replace(corpus, charset=named) if kept and Charset.from_text(kept).same_units_as(named) else corpus


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


def write_prefix(folder: Path, manifest: Manifest, towers: PromptTowers) -> None:
    """Write the states that all prompts of a template share, and commit them, unless that is done."""
    if PREFIX_FILE in manifest.files:
        return
    write_prefix_states(folder / PREFIX_FILE, towers)
    manifest.files[PREFIX_FILE] = FileRecord.of(folder / PREFIX_FILE)
    manifest.save(folder)


def write_prefix_states(path: Path, towers: PromptTowers) -> None:
    """Write the states that all prompts of a template share into a file, a row for each template."""
    shared = [tower.prefix for tower in towers.towers]
    tokens, lengths = np.concatenate(shared), np.array([len(prefix) for prefix in shared])
    with atomic_path(path) as temporary:
        write_states(
            temporary, States(tokens, lengths, np.zeros((len(shared), tokens.shape[1]), np.float32)), "float32"
        )


def load_towers(settings: EmbedTextSettings) -> tuple[PromptTowers, dict[str, Any], float]:
    """Return the towers of all templates, the identity of their states, and the seconds that loading took."""
    clip = load_clip(settings.clip, settings.precision, settings.device)
    towers = PromptTowers(clip, settings.templates, settings.seed, settings.states, settings.context)
    prefixes = [tower.prefix_ids for tower in towers.towers]
    identity: dict[str, Any] = {
        **clip.identity(),
        "tokenizer": clip.tokenizer_hash,
        "template": as_stored(settings.templates),
        "states": towers.first.states,
        "context": settings.context,
        "precision": settings.precision,
        "dtype": settings.dtype,
        "case": settings.corpus.case,
        "normalization": settings.corpus.normalization.identity(),
        "prefix_ids": prefixes[0] if len(prefixes) == 1 else prefixes,
        **({"template_seed": settings.seed} if len(prefixes) > 1 else {}),
        **({"padding": clip.padding} if settings.context == "full" else {}),
    }
    return towers, identity, clip.load_seconds
