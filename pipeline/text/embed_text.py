"""Stage 1 for text: a corpus to a prompt store; killed runs resume.

The order of labels depends only on the corpus. A shard is written, then committed in the manifest; uncommitted work of
a killed run is computed again. One shard is written while the next is encoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dptr.cache.choices import Context, EmbeddingsDtype, EmbeddingsKind, Precision
from dptr.cache.errors import UserError, require_at_least
from dptr.cache.file_names import MANIFEST_FILE, PREFIX_FILE, QUARANTINE_FILE
from dptr.cache.progress import note, progress
from dptr.cache.rejections import Quarantine
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.lock import locked
from dptr.cache.stores.manifest import FileRecord, Manifest, Shard
from dptr.cache.stores.prompt_rows import write_rows
from dptr.cache.stores.prompts import CATALOGUE_SCHEMA, TEMPLATE_COLUMN
from dptr.cache.stores.shards import Embeddings, write_embeddings, write_shard
from dptr.cache.text.charset import Charset
from dptr.pipeline.clip.loading import load_clip
from dptr.pipeline.executors.executor import IN_PROCESS, WHOLE, Executor, Part, Work, Worker
from dptr.pipeline.executors.ray_cluster import device_of_worker
from dptr.pipeline.executors.store_builder import (
    Group,
    Place,
    ShardToMake,
    StoreInMaking,
    StoreSummary,
    remember_inputs,
)
from dptr.pipeline.text.corpus import Corpus, CorpusSettings, LabelBatch, nothing_usable, read_corpus
from dptr.pipeline.text.made_up_words import make_up_words
from dptr.pipeline.text.prompts import Prompt, PromptEncoders, prompts_of
from dptr.pipeline.text.templates import DEFAULT_TEMPLATE, as_stored

_PROMPTS_TIMED = 512
_PROMPTS_CHECKED = 16


@dataclass(frozen=True)
class EmbedTextSettings:
    """Settings of embedding a corpus.

    Attributes:
        clip: ``tiny``, a directory or a hub id. embeddings: None picks by width (see TextEncoder).
        templates: sentences; each label gets one of them.
        dtype: how embeddings are stored. shard_rows: prompts of a shard; peak memory grows with it.
        tokens_per_batch: tokens encoded at once; None: what suits the device.
        cover_subwords: minimum number of prompts with each subword token that the charset can spell; made-up words
            complete the corpus.
        seed: of the made-up words, and of which label has which template.
        max_bad: most rejected inputs before the command fails; None for no limit.
    """

    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    clip: str = "tiny"
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    embeddings: EmbeddingsKind | None = None
    context: Context = "content"
    precision: Precision = "fp32"
    dtype: EmbeddingsDtype = "float16"
    shard_rows: int = 16384
    tokens_per_batch: int | None = None
    cover_subwords: int = 0
    seed: int = 0
    max_bad: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_at_least(1, shard_rows=self.shard_rows, tokens_per_batch=self.tokens_per_batch)
        if not self.templates or len(set(self.templates)) < len(self.templates):
            raise UserError("a template is missing, or given twice", "Give each --template once")
        require_at_least(0, max_bad=self.max_bad, cover_subwords=self.cover_subwords, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class EmbedTextSummary(StoreSummary):
    """Result of the command; ``table`` is for people."""

    table: str


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of embedding."""

    rows: int
    bytes: int
    seconds: float


def embed_text(
    paths: Sequence[str],
    out: Path,
    settings: EmbedTextSettings,
    part: Part = WHOLE,
    executor: Executor = IN_PROCESS,
) -> EmbedTextSummary:
    """Embed the distinct labels of a corpus that the prompt store ``out`` lacks, or a ``part`` of them.

    The ``executor`` changes no byte.

    Raises:
        UserError: an input or setting is wrong. DamagedStore: ``out`` holds a store of another kind of embeddings.
        TooManyRejected: more inputs were rejected than allowed; what was computed stays.
    """
    started = time.monotonic()
    if part.of > 1 and settings.cover_subwords:
        raise UserError("--cover-subwords needs the whole corpus", "Merge the parts, then run it without --part")
    if part.of > 1 and "-" in paths:
        raise UserError("--part cannot read standard input, as each part reads the whole corpus", "Name a file")
    with locked(part.beside(out)):
        encoders, identity, load_seconds = load_encoders(settings)
        # Chosen here, so that a cluster's workers and a repair use the same number.
        settings = replace(settings, tokens_per_batch=settings.tokens_per_batch or encoders.first.tokens_per_batch)
        making = StoreInMaking(out, "prompts", identity, part)
        manifest, folder, rows_before = making.manifest, making.folder, making.manifest.rows
        remember_inputs(manifest, list(paths), _remembered(settings))
        with manifest.rewriting(folder, QUARANTINE_FILE):
            with (
                Quarantine(folder / QUARANTINE_FILE) as quarantine,
                read_corpus(paths, settings.corpus, quarantine) as corpus,
            ):
                settle_charset(folder, manifest, corpus.charset, settings.corpus.wanted.learnt)
                write_prefix(folder, manifest, encoders)
                filling = _Filling(making, encoders, settings, executor, corpus, quarantine)
                filling.embed_corpus()
                if not making.rows:
                    raise nothing_usable(paths, quarantine)
                table = corpus.summary(quarantine, filling.embed_made_up() if settings.cover_subwords else [])
            if part.is_whole:
                write_rows(folder, manifest)
            # Only now is the file of rejected inputs in place and the store complete.
            making.finish()
        quarantine.check(settings.max_bad)
    return EmbedTextSummary(
        out=folder,
        rows=manifest.rows,
        computed=manifest.rows - rows_before,
        quarantined=quarantine.total,
        seconds=time.monotonic() - started - load_seconds,
        load_seconds=load_seconds,
        table=table,
    )


def _remembered(settings: EmbedTextSettings) -> dict[str, Any]:
    """Return the settings outside the identity on which a shard's bits depend."""
    rules = settings.corpus
    corpus = {name: getattr(rules, name) for name in ("unit", "column", "min_count", "case")}
    corpus["normalization"] = rules.normalization.identity()
    return {"corpus": corpus} | {name: getattr(settings, name) for name in ("shard_rows", "tokens_per_batch", "seed")}


@dataclass(frozen=True)
class _Filling:
    """A prompt store in the making, and what its prompts come from."""

    making: StoreInMaking
    encoders: PromptEncoders
    settings: EmbedTextSettings
    executor: Executor
    corpus: Corpus
    quarantine: Quarantine

    def embed_corpus(self) -> None:
        """Embed the labels that the store lacks."""
        self.corpus.without(self.making.catalogues)
        total = self.corpus.kept
        batches = self.corpus.batches(self.settings.shard_rows)
        self._embed(batches, "embedding", total, total - self.corpus.remaining)

    def embed_made_up(self) -> list[tuple[str, str]]:
        """Make up words that complete the corpus, embed those that the store lacks, and return counts of both."""
        settings, corpus = self.settings, self.corpus
        catalogues = self.making.manifest.catalogues(self.making.folder)
        rules, least = settings.corpus.normalization, settings.cover_subwords
        made_up = make_up_words(catalogues, self.encoders, corpus.charset, rules, least, settings.seed)
        remaining = made_up.without(catalogues)
        self._embed([remaining], "embedding made-up words", len(remaining.labels), 0)
        return made_up.summary(least)

    def _embed(self, batches: Iterable[LabelBatch], doing: str, total: int, done: int) -> None:
        """Embed prompts shard by shard and commit each in its turn."""
        folder, settings = self.making.folder, self.settings
        worker = Worker(
            _work_of(folder, self.encoders, settings, check=True), _make_work, (folder.absolute(), settings)
        )
        with progress(doing, total, "labels", done) as shown:

            def groups() -> Iterator[Group]:
                charset = self.corpus.charset
                rules, size = settings.corpus, settings.shard_rows
                for prompts in prompts_of(batches, charset, rules, self.encoders, self.quarantine, size):
                    labels = [f"{prompt.count} {label}" for prompt in prompts for label in prompt.labels]
                    yield Group(len(labels), labels, prompts)
                    shown.advance(len(prompts))

            self.making.fill(self.executor, worker, groups(), rows=None)


def estimate(paths: Sequence[str], out: Path, settings: EmbedTextSettings) -> Estimate:
    """Read the corpus and embed a few prompts to estimate what :func:`embed_text` would cost; writes no store.

    Words that would be made up are not counted, as which ones depends on the whole store.
    """
    with (
        TemporaryDirectory(prefix="dptr-") as scratch,
        Quarantine(Path(scratch) / QUARANTINE_FILE) as quarantine,
        read_corpus(paths, settings.corpus, quarantine) as corpus,
    ):
        if (out / MANIFEST_FILE).is_file():
            corpus.without(Manifest.load(out, "prompts").catalogues(out))
        if corpus.remaining == 0:
            return Estimate(0, 0, 0.0)
        encoders, _, _ = load_encoders(settings)
        size = min(_PROMPTS_TIMED, corpus.remaining)
        groups = prompts_of(corpus.batches(size), corpus.charset, settings.corpus, encoders, quarantine, size)
        prompts = next(groups, [])
        if not prompts:
            return Estimate(0, 0, 0.0)
        encode(encoders, prompts, settings)  # the first one is slow
        started = time.monotonic()
        embeddings = encode(encoders, prompts, settings)
        share = len(prompts) / corpus.remaining
        seconds = (time.monotonic() - started) / share
    rows = round(sum(len(prompt.labels) for prompt in prompts) / share)
    return Estimate(rows, round(rows * _bytes_of_a_row(embeddings, settings.dtype)), seconds)


def _bytes_of_a_row(embeddings: Embeddings, dtype: EmbeddingsDtype) -> float:
    dim, pooled_dim = embeddings.tokens.shape[1], embeddings.pooled.shape[1]
    of_a_token: int = {"float16": 2 * dim, "float32": 4 * dim, "int8": dim + 4}[dtype]
    # Pooled vectors stand in the catalogue and, in half precision, beside the embeddings.
    return float(embeddings.lengths.mean() * of_a_token + 6 * pooled_dim + 100)


def settle_charset(folder: Path, manifest: Manifest, charset: Charset, learnt: bool) -> None:
    """Give a new store its charset, or check that an old one has the same.

    A learnt charset only grows with its corpus: existing labels still fit.

    Raises:
        DamagedStore: the store's charset is another.
    """
    # Later stages normalise labels like the store.
    charset = replace(charset, unicode=manifest.identity["normalization"]["unicode"])
    known = Charset.from_text(manifest.identity["charset"]) if manifest.identity.get("charset") else None
    if known is not None:
        if learnt and charset.units == known.units:
            charset = charset.with_more(known.characters)
        manifest.require_equal(folder, {} if learnt and charset.units == known.units else {"charset": charset.text})
    manifest.identity["charset"] = charset.text


def write_prefix(folder: Path, manifest: Manifest, encoders: PromptEncoders) -> None:
    """Write the embeddings that all prompts of a template share, and commit them, unless that is done."""
    if PREFIX_FILE in manifest.files:
        return
    write_prefix_embeddings(folder / PREFIX_FILE, encoders)
    manifest.files[PREFIX_FILE] = FileRecord.of(folder / PREFIX_FILE)
    manifest.save(folder)


def write_prefix_embeddings(path: Path, encoders: PromptEncoders) -> None:
    """Write the embeddings that all prompts of a template share into a file, a row for each template."""
    shared = [encoder.prefix for encoder in encoders.of_template]
    tokens, lengths = np.concatenate(shared), np.array([len(prefix) for prefix in shared])
    with atomic_path(path) as temporary:
        write_embeddings(
            temporary, Embeddings(tokens, lengths, np.zeros((len(shared), tokens.shape[1]), np.float32)), "float32"
        )


def load_encoders(settings: EmbedTextSettings) -> tuple[PromptEncoders, dict[str, Any], float]:
    """Return the encoders of all templates, the identity of their embeddings, and the seconds that loading took."""
    clip = load_clip(settings.clip, settings.precision, settings.device)
    encoders = PromptEncoders(clip, settings.templates, settings.seed, settings.embeddings, settings.context)
    prefixes = [encoder.prefix_ids for encoder in encoders.of_template]
    identity: dict[str, Any] = {
        **clip.identity(),
        "tokenizer": clip.tokenizer_hash,
        "template": as_stored(settings.templates),
        "embeddings": encoders.first.embeddings,
        "context": settings.context,
        "precision": settings.precision,
        "dtype": settings.dtype,
        "case": settings.corpus.case,
        "normalization": settings.corpus.normalization.identity(),
        "prefix_ids": prefixes[0] if len(prefixes) == 1 else prefixes,
        **({"template_seed": settings.seed} if len(prefixes) > 1 else {}),
        **({"padding": clip.padding} if settings.context == "full" else {}),
    }
    return encoders, identity, clip.load_seconds


def _make_work(folder: Path, settings: EmbedTextSettings) -> Work[Shard]:
    settings = replace(settings, device=device_of_worker())
    encoders, _, _ = load_encoders(settings)
    return _work_of(folder, encoders, settings, check=False)


def _work_of(folder: Path, encoders: PromptEncoders, settings: EmbedTextSettings, check: bool) -> Work[Shard]:
    def embed(shard: ShardToMake) -> Callable[[], Shard]:
        nonlocal check
        (prompts,) = shard.payloads
        if check:
            _check(encoders, prompts)
            check = False
        embeddings = encode(encoders, prompts, settings)
        return lambda: write_prompt_shard(folder, shard.place, prompts, embeddings, settings)

    return embed


def encode(encoders: PromptEncoders, prompts: list[Prompt], settings: EmbedTextSettings) -> Embeddings:
    """Return the embeddings of prompts."""
    return encoders.encode(*_tokens_and_templates(prompts), settings.tokens_per_batch)


def _check(encoders: PromptEncoders, prompts: list[Prompt]) -> None:
    spread = np.linspace(0, len(prompts) - 1, min(_PROMPTS_CHECKED, len(prompts))).astype(int)
    apart = encoders.check(*_tokens_and_templates([prompts[i] for i in spread]))
    note(f"text embeddings differ from transformers' own by at most {apart:.1e}")


def _tokens_and_templates(prompts: list[Prompt]) -> tuple[list[list[int]], list[int]]:
    return [prompt.token_ids for prompt in prompts], [prompt.template for prompt in prompts]


def write_prompt_shard(
    folder: Path, place: Place, prompts: list[Prompt], embeddings: Embeddings, settings: EmbedTextSettings
) -> Shard:
    """Write a shard with a row for every label of ``prompts``; the caller commits it.

    Labels of one prompt repeat its embeddings, so that each row is self-contained; ``embeddings_of`` is the id of
    the first of them. With several templates, each row has its template's number.

    Raises:
        UserError: embeddings are too large for half precision.
    """
    _require_half_precision(embeddings, settings.dtype)
    first_id = place.first_id
    repeats = np.array([len(prompt.labels) for prompt in prompts])
    rows = [(label, prompt) for prompt in prompts for label in prompt.labels]
    of_prompt = np.repeat(np.arange(len(prompts)), repeats)
    first_rows = np.cumsum(repeats) - repeats
    columns = {
        "id": pa.array(np.arange(first_id, first_id + len(rows))),
        "label": [label for label, _ in rows],
        "prompt": [prompt.text for _, prompt in rows],
        "label_length": pa.array([length for prompt in prompts for length in prompt.lengths], pa.int16()),
        "n_tokens": pa.array([len(prompt.token_ids) for _, prompt in rows], pa.int16()),
        "token_ids": pa.array([prompt.token_ids for _, prompt in rows], pa.list_(pa.int32())),
        "token_letters": pa.array([prompt.token_letters for _, prompt in rows], pa.list_(pa.int16())),
        "embeddings_of": pa.array(first_id + first_rows[of_prompt]),
        "count": pa.array([prompt.count for _, prompt in rows], pa.int64()),
        "source": [prompt.source for _, prompt in rows],
    }
    if len(rows) > len(prompts):
        embeddings = embeddings.at(of_prompt)
    schema = CATALOGUE_SCHEMA
    if len(settings.templates) > 1:
        schema = schema.append(TEMPLATE_COLUMN)
        columns[TEMPLATE_COLUMN.name] = pa.array([prompt.template for _, prompt in rows], TEMPLATE_COLUMN.type)
    return write_shard(folder, place.number, pa.table(columns, schema=schema), embeddings, settings.dtype, {})


def _require_half_precision(embeddings: Embeddings, dtype: EmbeddingsDtype) -> None:
    """Check that half precision holds token embeddings where they are stored so, and pooled vectors always."""
    stored = [embeddings.pooled, embeddings.tokens] if dtype == "float16" else [embeddings.pooled]
    largest = max(float(np.abs(vectors).max(initial=0.0)) for vectors in stored)
    if not largest <= float(np.finfo(np.float16).max):
        raise UserError(
            f"text embeddings reach {largest:.3g}, beyond the range of float16",
            "Use --dtype float32, or another CLIP: pooled vectors are kept in half precision",
        )


def prompts_in(catalogue: Path) -> list[Prompt]:
    """Return the prompts of a shard's catalogue, as they were embedded."""
    prompts: dict[int, Prompt] = {}
    for row in pq.read_table(catalogue).drop_columns(["pooled"]).to_pylist():
        made: dict[str, Any] = {name: row[name] for name in ("token_ids", "token_letters", "count", "source")}
        made |= {"text": row["prompt"], "template": row.get(TEMPLATE_COLUMN.name, 0)}
        known = prompts.setdefault(row["embeddings_of"], Prompt(labels=[], lengths=[], **made))
        known.labels.append(row["label"])
        known.lengths.append(row["label_length"])
    return list(prompts.values())
