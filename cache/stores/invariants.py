"""What must hold between the files of a store, whatever their hashes say: rows, offsets, ids, dimensions, charset."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dptr.cache.errors import DptrError
from dptr.cache.file_names import (
    INDEX_FILE,
    MANIFEST_FILE,
    NEIGHBOURS_ARRAY,
    NEIGHBOURS_TABLE,
    PREFIX_FILE,
    ROWS_FILE,
)
from dptr.cache.stores import prompt_rows
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.neighbours import DETAIL, Neighbours
from dptr.cache.stores.prompts import TEMPLATE_COLUMN
from dptr.cache.stores.shard_record import Shard
from dptr.cache.stores.shards import StatesFile

#: Parts of the identity without which a store of a kind cannot be used.
_NEEDED = {
    "prompts": ("encoder", "weights", "template", "dtype", "context", "charset"),
    "orp": ("encoder", "weights", "dtype", "tokens_per_crop"),
    "word_crops": ("encoder", "weights", "dtype", "tokens_per_crop", "charset", "views"),
}

#: File, shard (None: of the whole store), and what is wrong.
Contradiction = tuple[str, str | None, str]


def contradictions(folder: Path, manifest: Manifest, damaged: Collection[str]) -> Iterator[Contradiction]:
    """Compare the files of a store with each other and with its manifest, but for those that are ``damaged`` anyway."""
    for name in _NEEDED[manifest.kind]:
        if not manifest.identity.get(name):
            yield MANIFEST_FILE, None, f"says nothing of {name}"
    if manifest.kind == "prompts" and manifest.shards and PREFIX_FILE not in manifest.files:
        yield MANIFEST_FILE, None, f"does not list {PREFIX_FILE}"
    first, widths = 0, set()
    for shard in manifest.shards:
        if not {*shard.files, PREFIX_FILE} & set(damaged):
            try:
                widths.add(_require_consistent(folder, manifest, shard, first))
            except (_Contradicts, DptrError, pa.ArrowException, OSError, KeyError, ValueError) as error:
                yield shard.states, shard.name, str(error)
        first += shard.rows
    if len(widths) > 1:
        yield MANIFEST_FILE, None, f"lists shards of different widths: {sorted(widths)}"
    yield from _of_neighbours(folder, manifest, damaged)
    if ROWS_FILE not in damaged and (problem := prompt_rows.contradiction(folder, manifest)):
        yield ROWS_FILE, None, problem
    # One of fewer is that of a bank which is being added to.
    if INDEX_FILE in manifest.files and manifest.details.get("index", {}).get("rows", 0) > manifest.rows:
        yield INDEX_FILE, None, "is of more crops than the bank has"


class _Contradicts(Exception):
    """Two files of a shard do not agree; the text says in what."""


def _require_consistent(folder: Path, manifest: Manifest, shard: Shard, first: int) -> tuple[int, int]:
    """Compare a shard's catalogue and states; return the widths of its states and of its pooled vectors."""
    columns = ["id", "shard", "row"] + (["n_tokens"] if manifest.kind == "prompts" else [])
    templates = manifest.identity.get("template")
    columns += [TEMPLATE_COLUMN.name] if isinstance(templates, list) else []
    catalogue = pq.read_table(folder / shard.catalogue, columns=columns)
    states = StatesFile(folder / shard.states)
    offsets = states.offsets.astype(np.int64)
    lengths = np.diff(offsets)
    _require(len(catalogue) == shard.rows, f"{len(catalogue)} rows in its catalogue, {shard.rows} in the manifest")
    _require(len(lengths) == shard.rows, f"states of {len(lengths)} rows, {shard.rows} in the manifest")
    _require(len(states.pooled) == shard.rows, "another number of pooled vectors than of rows")
    _require(offsets[0] == 0 and offsets[-1] == len(states.tokens), "offsets that do not span its tokens")
    _require(bool((lengths > 0).all()), "rows without tokens, or offsets that fall")
    ids, rows = (catalogue[name].to_numpy() for name in ("id", "row"))
    _require(np.array_equal(ids, np.arange(first, first + shard.rows)), "ids that do not follow the shard before")
    _require(np.array_equal(rows, np.arange(shard.rows)), "row numbers that do not count from 0")
    _require(set(catalogue["shard"].unique().to_pylist()) <= {shard.name}, "rows of another shard")
    if manifest.kind == "prompts" and manifest.identity.get("context") == "content":
        own = catalogue["n_tokens"].to_numpy() - _shared_tokens(folder, catalogue, templates)
        _require(np.array_equal(lengths, own), "other numbers of tokens than its catalogue says")
    if manifest.kind != "prompts":
        _require(bool((lengths == manifest.identity.get("tokens_per_crop")).all()), "crops of other numbers of tokens")
    if manifest.kind == "word_crops":
        _require(shard.rows % int(manifest.identity.get("views", 1)) == 0, "a crop without all of its views")
    return states.tokens.shape[1], states.pooled.shape[1]


def _shared_tokens(folder: Path, catalogue: pa.Table, templates: object) -> NDArray[np.int64]:
    """Return how many tokens of each row's prompt are in the prefix of its template, shape (rows,)."""
    lengths = np.diff(StatesFile(folder / PREFIX_FILE).offsets.astype(np.int64))
    expected = len(templates) if isinstance(templates, list) else 1
    _require(len(lengths) == expected, f"{len(lengths)} prefixes beside {expected} templates")
    if not isinstance(templates, list):
        return np.broadcast_to(lengths, len(catalogue))
    which = catalogue[TEMPLATE_COLUMN.name].to_numpy()
    _require(bool(((which >= 0) & (which < expected)).all()), "rows of a template that it does not have")
    shared: NDArray[np.int64] = lengths[which]
    return shared


def _of_neighbours(folder: Path, manifest: Manifest, damaged: Collection[str]) -> Iterator[Contradiction]:
    names = {NEIGHBOURS_ARRAY, NEIGHBOURS_TABLE}
    if not names <= manifest.files.keys() or names & set(damaged):
        return
    told = manifest.details.get(DETAIL, {})
    crops = Neighbours(folder / NEIGHBOURS_ARRAY).crops
    if crops.shape != (told.get("prompts"), told.get("k")):
        yield NEIGHBOURS_ARRAY, None, f"has the shape {crops.shape}, not ({told.get('prompts')}, {told.get('k')})"
    elif crops.min(initial=0) < 0 or crops.max(initial=-1) >= told.get("crops", 0):
        yield NEIGHBOURS_ARRAY, None, "names crops that the bank does not have"
    if pq.read_metadata(folder / NEIGHBOURS_TABLE).num_rows != len(crops):
        yield NEIGHBOURS_TABLE, None, f"has another number of rows than {NEIGHBOURS_ARRAY}"


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Contradicts(f"has {otherwise}")
