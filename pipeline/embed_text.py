"""Stage 1 for text: a corpus to a prompt store, once, whatever happens on the way.

Labels come in an order that the corpus fixes; a shard is written, then committed in the manifest, and everything that a
killed run left uncommitted is simply computed again. Shards are cut by accepted labels, so that a resumed run cuts them
where an undisturbed one does, and the bytes are the same.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dptr.cache.charset import Charset
from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.files import atomic_path
from dptr.cache.manifest import FILE_NAME, FileRecord, Manifest, Shard
from dptr.cache.progress import note, progress
from dptr.cache.prompts import CATALOGUE_SCHEMA, PREFIX_FILE
from dptr.cache.quarantine import Quarantine
from dptr.cache.shards import States, StatesDtype, write_shard, write_states
from dptr.pipeline.clip import Precision, load_clip
from dptr.pipeline.corpus import Corpus, CorpusSettings, case_variants, corpus_fingerprint, read_corpus
from dptr.pipeline.templates import DEFAULT_TEMPLATE, Template

if TYPE_CHECKING:
    from dptr.pipeline.text_tower import Context, StatesKind, TextTower

_PROMPTS_CHECKED = 16
_PROMPTS_TIMED = 512
QUARANTINE_FILE = "quarantine.parquet"


@dataclass(frozen=True)
class EmbedTextSettings:
    """How a corpus is embedded.

    Attributes:
        clip: ``tiny``, a directory or a hub id. states: None picks by width (see TextTower).
        dtype: how states are stored. shard_rows: labels of a shard; peak memory grows with it.
        max_bad: most refused inputs before the command fails; None for no limit.
    """

    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    clip: str = "tiny"
    template: str = DEFAULT_TEMPLATE
    states: StatesKind | None = None
    context: Context = "content"
    precision: Precision = "fp32"
    dtype: StatesDtype = "float16"
    shard_rows: int = 16384
    tokens_per_batch: int = 4096
    max_bad: int | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class EmbedTextSummary:
    """What the command did; ``table`` is for people."""

    out: Path
    rows: int
    computed: int
    quarantined: int
    seconds: float
    load_seconds: float
    table: str


@dataclass(frozen=True)
class Estimate:
    """What embedding would cost."""

    rows: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class _Row:
    """One catalogue row to be; rows of one label that differ in case share ``token_ids``."""

    label: str
    prompt: str
    token_ids: list[int]
    count: int
    source: str


def embed_text(paths: Sequence[str], out: Path, models: Path, settings: EmbedTextSettings) -> EmbedTextSummary:
    """Embed the distinct labels of a corpus into the prompt store ``out``, adding what it lacks.

    Raises:
        UserError: an input or setting is wrong. DamagedStore: ``out`` holds a store of another kind of states.
        TooManyRefused: more inputs were refused than allowed; what was computed stays.
    """
    started = time.monotonic()
    asked = _what_is_asked(paths, settings)
    manifest = Manifest.load(out, "prompts") if (out / FILE_NAME).is_file() else None
    if manifest is not None and asked is not None and manifest.details.get("finished") == asked:
        note(f"{out} already holds all {manifest.rows:,} rows of this corpus")
        table = manifest.details["summary"]
        refused = manifest.details["quarantined"]
        return EmbedTextSummary(out, manifest.rows, 0, refused, time.monotonic() - started, 0.0, table)
    with Quarantine(out / QUARANTINE_FILE) as quarantine, _scratch(out) as scratch:
        with read_corpus(paths, settings.corpus, quarantine, scratch) as corpus:
            tower, identity, load_seconds = _load(models, settings)
            manifest = _open(out, manifest, identity, corpus.charset, settings)
            _write_prefix(out, manifest, tower)
            computed = _embed_remaining(out, manifest, corpus, tower, settings, quarantine)
            table = corpus.summary(quarantine)
        manifest.details |= {"finished": asked, "summary": table, "quarantined": quarantine.total}
        manifest.save(out)
    quarantine.check(settings.max_bad)
    seconds = time.monotonic() - started - load_seconds
    return EmbedTextSummary(out, manifest.rows, computed, quarantine.total, seconds, load_seconds, table)


def estimate(paths: Sequence[str], out: Path, models: Path, settings: EmbedTextSettings) -> Estimate:
    """Read the corpus and embed a few prompts to tell what :func:`embed_text` would cost; writes no store."""
    with (
        _scratch(out) as scratch,
        Quarantine(scratch / QUARANTINE_FILE) as quarantine,
        read_corpus(paths, settings.corpus, quarantine, scratch) as corpus,
    ):
        if (out / FILE_NAME).is_file():
            corpus.without(_catalogues(out, Manifest.load(out, "prompts")))
        if corpus.remaining == 0:
            return Estimate(0, 0, 0.0)
        tower, _, _ = _load(models, settings)
        group = next(_groups(corpus, tower, settings, quarantine, min(_PROMPTS_TIMED, corpus.remaining)))
        states = _encode(tower, group, settings)
        started = time.monotonic()
        _encode(tower, group, settings)
        seconds_each = (time.monotonic() - started) / len(group)
    dim, rows = states.tokens.shape[1], round(corpus.remaining * _rows_of(group) / len(group))
    width = {"float16": 2 * dim, "float32": 4 * dim, "int8": dim + 4}[settings.dtype]
    tokens_each = len(states.tokens) / len(states.lengths)
    bytes_each = tokens_each * width + states.pooled.shape[1] * 6 + 100
    return Estimate(rows, round(rows * bytes_each), corpus.remaining * seconds_each)


def _what_is_asked(paths: Sequence[str], settings: EmbedTextSettings) -> dict[str, Any] | None:
    """Return what must be equal for a finished store to need no work; None when that cannot be known."""
    fingerprint = corpus_fingerprint(paths, settings.corpus)
    if fingerprint is None:
        return None
    asked = {name: value for name, value in asdict(settings).items() if name not in ("corpus", "max_bad", "device")}
    return {**asked, "corpus": fingerprint}


def _load(models: Path, settings: EmbedTextSettings) -> tuple[TextTower, dict[str, Any], float]:
    from dptr.pipeline.text_tower import TextTower

    clip = load_clip(settings.clip, models, settings.precision, settings.device)
    tower = TextTower(clip, Template(settings.template), settings.states, settings.context)
    identity = {
        **clip.identity(),
        "tokenizer": clip.tokenizer_hash,
        "template": settings.template,
        "states": tower.states,
        "context": settings.context,
        "precision": settings.precision,
        "dtype": settings.dtype,
        "case": settings.corpus.case,
        "normalization": asdict(settings.corpus.normalization),
        "prefix_ids": tower.prefix_ids,
    }
    return tower, identity, clip.load_seconds


def _open(
    out: Path, manifest: Manifest | None, identity: dict[str, Any], charset: Charset, settings: EmbedTextSettings
) -> Manifest:
    """Start a manifest, or check that the old one is of the same identity."""
    if manifest is None:
        return Manifest("prompts", {**identity, "charset": charset.characters})
    known = Charset(manifest.identity["charset"])
    if settings.corpus.charset == "auto":
        # A learnt charset only ever grows with the corpus; the labels that are there still fit.
        charset = Charset("".join(sorted(set(known.characters) | set(charset.characters))))
        manifest.identity["charset"] = charset.characters
    wanted = {**identity, "charset": charset.characters}
    differing = [name for name, value in wanted.items() if manifest.identity.get(name) != value]
    if differing:
        raise DamagedStore(
            f"{out} holds a store with other settings ({', '.join(differing)})",
            "Use the same settings, another folder with -o, or move the old store away",
        )
    return manifest


def _write_prefix(out: Path, manifest: Manifest, tower: TextTower) -> None:
    if PREFIX_FILE in manifest.files:
        return
    prefix = tower.prefix
    with atomic_path(out / PREFIX_FILE) as path:
        write_states(path, States(prefix, np.array([len(prefix)]), prefix[:1]), "float32")
    manifest.files[PREFIX_FILE] = FileRecord.of(out / PREFIX_FILE)
    manifest.save(out)


def _embed_remaining(
    out: Path,
    manifest: Manifest,
    corpus: Corpus,
    tower: TextTower,
    settings: EmbedTextSettings,
    quarantine: Quarantine,
) -> int:
    """Embed the labels that the store lacks, shard by shard; return the number of new rows."""
    rows_before = manifest.rows
    total = corpus.kept
    corpus.without(_catalogues(out, manifest))
    with progress("embedding", total, "labels", total - corpus.remaining) as shown:
        for number, group in enumerate(_groups(corpus, tower, settings, quarantine, settings.shard_rows)):
            if number == 0:
                _check(tower, group)
            states = _encode(tower, group, settings)
            manifest.shards.append(_write(out, manifest, group, states, settings.dtype))
            manifest.save(out)
            shown.advance(len(group))
    return manifest.rows - rows_before


def _groups(
    corpus: Corpus, tower: TextTower, settings: EmbedTextSettings, quarantine: Quarantine, size: int
) -> Iterator[list[list[_Row]]]:
    """Yield groups of ``size`` accepted labels, each label as its rows (one, or its case variants)."""
    template = Template(settings.template)
    group: list[list[_Row]] = []
    for batch in corpus.batches(size):
        prompts = [template.prompt(label) for label in batch.labels]
        all_ids = tower.tokenize(prompts)
        for label, prompt, ids, count, source in zip(
            batch.labels, prompts, all_ids, batch.counts.tolist(), batch.sources, strict=True
        ):
            reason = _refuse(ids, tower)
            if reason is not None:
                quarantine.refuse(source, None, label, reason)
                continue
            rows = [_Row(v, prompt, ids, count, source) for v in _variants(label, settings.corpus, corpus.charset)]
            if rows:
                group.append(rows)
            else:
                quarantine.refuse(source, None, label, "no case variant fits the charset and the length")
            if len(group) == size:
                yield group
                group = []
    if group:
        yield group


def _variants(label: str, settings: CorpusSettings, charset: Charset) -> list[str]:
    variants = case_variants(label, settings.case)
    return [variant for variant in variants if settings.normalization.refuse(variant, charset) is None]


def _refuse(ids: list[int], tower: TextTower) -> str | None:
    if len(ids) > tower.max_tokens:
        return f"prompt longer than {tower.max_tokens} tokens"
    if ids[: len(tower.prefix_ids)] != tower.prefix_ids:
        return "prompt does not start with the shared tokens"
    return None


def _encode(tower: TextTower, group: list[list[_Row]], settings: EmbedTextSettings) -> States:
    """Encode each label once; its case variants share the states."""
    return tower.encode([rows[0].token_ids for rows in group], settings.tokens_per_batch)


def _check(tower: TextTower, group: list[list[_Row]]) -> None:
    spread = np.linspace(0, len(group) - 1, min(_PROMPTS_CHECKED, len(group))).astype(int)
    worst = tower.check([group[index][0].token_ids for index in spread])
    note(f"text states agree with transformers' own to {worst:.1e}")


def _write(out: Path, manifest: Manifest, group: list[list[_Row]], states: States, dtype: StatesDtype) -> Shard:
    repeats = np.array([len(rows) for rows in group])
    if repeats.max() > 1:
        states = _repeat(states, repeats)
    flat = [row for rows in group for row in rows]
    columns = {
        "id": pa.array(np.arange(manifest.rows, manifest.rows + len(flat))),
        "label": [row.label for row in flat],
        "prompt": [row.prompt for row in flat],
        "label_length": pa.array([len(row.label) for row in flat], pa.int16()),
        "n_tokens": pa.array([len(row.token_ids) for row in flat], pa.int16()),
        "token_ids": pa.array([row.token_ids for row in flat], pa.list_(pa.int32())),
        "count": pa.array([row.count for row in flat], pa.int64()),
        "source": [row.source for row in flat],
    }
    catalogue = pa.table(columns, schema=CATALOGUE_SCHEMA)
    return write_shard(out, len(manifest.shards), catalogue, states, dtype, {})


def _repeat(states: States, repeats: np.ndarray[Any, np.dtype[np.int64]]) -> States:
    """Write each label's states once for every one of its rows."""
    starts = np.cumsum(states.lengths) - states.lengths
    rows = np.repeat(np.arange(len(repeats)), repeats)
    tokens = np.concatenate([states.tokens[starts[row] : starts[row] + states.lengths[row]] for row in rows])
    return States(tokens, states.lengths[rows], states.pooled[rows])


def _rows_of(group: list[list[_Row]]) -> int:
    return sum(len(rows) for rows in group)


def _catalogues(out: Path, manifest: Manifest) -> list[Path]:
    return [out / f"{shard.name}.parquet" for shard in manifest.shards]


class _scratch:  # noqa: N801 - used as a function
    """A folder beside the shards for what is sorted on disk; gone afterwards."""

    def __init__(self, out: Path) -> None:
        self._folder = out / ".scratch"

    def __enter__(self) -> Path:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot write to {self._folder.parent}: {error.strerror}", "Name another folder"
            ) from error
        return self._folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
