"""Stage 1 for text: a corpus to a prompt store, computed once, also where it is killed on the way.

Labels come in an order that the corpus fixes; a shard is written, then committed in the manifest, and everything that a
killed run left uncommitted is simply computed again. One shard is written while the next is being encoded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dptr.cache.choices import EmbeddingsDtype
from dptr.cache.errors import UserError
from dptr.cache.file_names import MANIFEST_FILE, QUARANTINE_FILE
from dptr.cache.progress import note, progress
from dptr.cache.rejections import Quarantine
from dptr.cache.stores.lock import locked
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.prompt_rows import write_rows
from dptr.cache.stores.shards import Embeddings
from dptr.pipeline.clip.clip_files import files_hash
from dptr.pipeline.executors.executor import IN_PROCESS, Executor
from dptr.pipeline.executors.part import WHOLE, Part
from dptr.pipeline.executors.store_builder import StoreInMaking, remember_inputs
from dptr.pipeline.text.corpus import Corpus, corpus_fingerprint, nothing_usable, read_corpus
from dptr.pipeline.text.made_up_words import CoverageGoal, make_up_words
from dptr.pipeline.text.prompt_store import (
    EmbedTextSettings,
    Filling,
    embed_groups,
    encode,
    load_encoders,
    settle_charset,
    write_prefix,
)
from dptr.pipeline.text.prompts import Prompt, PromptEncoders, prompts_of

__all__ = ["EmbedTextSettings", "EmbedTextSummary", "Estimate", "embed_text", "estimate"]

_PROMPTS_TIMED = 512


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


def embed_text(
    paths: Sequence[str],
    out: Path,
    settings: EmbedTextSettings,
    part: Part = WHOLE,
    executor: Executor = IN_PROCESS,
) -> EmbedTextSummary:
    """Embed the distinct labels of a corpus into the prompt store ``out``, adding what it lacks, or a ``part`` of that.

    The ``executor`` says where; it changes no byte.

    Raises:
        UserError: an input or setting is wrong. DamagedStore: ``out`` holds a store of another kind of embeddings.
        TooManyRejected: more inputs were rejected than allowed; what was computed stays.
    """
    started = time.monotonic()
    _require_separable(paths, settings, part)
    folder = part.beside(out)
    asked = _what_is_asked(paths, settings)
    finished = _finished(folder, asked, settings.max_bad, started)
    if finished is not None:
        return finished
    with locked(folder):
        return _embed(paths, out, settings, part, executor, asked, started)


def _require_separable(paths: Sequence[str], settings: EmbedTextSettings, part: Part) -> None:
    """Check that a part can know its share from the corpus alone."""
    if part.of == 1:
        return
    if settings.cover_subwords:
        raise UserError(
            "which words --cover-subwords makes up depends on all parts", "Merge the parts, then run it without --part"
        )
    if "-" in paths:
        raise UserError("each part reads the whole corpus, which standard input is only once", "Name a file")


def _embed(
    paths: Sequence[str],
    out: Path,
    settings: EmbedTextSettings,
    part: Part,
    executor: Executor,
    asked: dict[str, Any] | None,
    started: float,
) -> EmbedTextSummary:
    encoders, identity, load_seconds = load_encoders(settings)
    # Settled here, so that a cluster's workers and a repair take as many.
    settings = replace(settings, tokens_per_batch=settings.tokens_per_batch or encoders.first.tokens_per_batch)
    making = StoreInMaking(out, "prompts", identity, part)
    manifest, folder = making.manifest, making.folder
    remember_inputs(manifest, list(paths), _remembered(settings))
    filling, rows_before = Filling(making, encoders, settings, executor), manifest.rows
    with manifest.rewriting(folder, QUARANTINE_FILE):
        with (
            Quarantine(folder / QUARANTINE_FILE) as quarantine,
            read_corpus(paths, settings.corpus, quarantine) as corpus,
        ):
            settle_charset(folder, manifest, corpus.charset, settings.corpus.wanted.learnt)
            write_prefix(folder, manifest, encoders)
            _embed_remaining(filling, corpus, quarantine)
            if not making.rows:
                raise nothing_usable(paths, quarantine)
            more = _embed_made_up(filling, corpus, quarantine) if settings.cover_subwords else []
            table = corpus.summary(quarantine, more)
        if part.is_whole:
            write_rows(folder, manifest)
        # Only now is the quarantine's file in its place, and the store as a whole finished.
        making.finish(finished=asked, summary=table, quarantined=quarantine.total)
    quarantine.check(settings.max_bad)
    seconds, computed = time.monotonic() - started - load_seconds, manifest.rows - rows_before
    return EmbedTextSummary(folder, manifest.rows, computed, quarantine.total, seconds, load_seconds, table)


def _remembered(settings: EmbedTextSettings) -> dict[str, Any]:
    """Return what, besides the identity, the bits of a shard depend on."""
    rules = settings.corpus
    corpus = {name: getattr(rules, name) for name in ("unit", "column", "min_count", "case")}
    corpus["normalization"] = rules.normalization.identity()
    return {"corpus": corpus} | {name: getattr(settings, name) for name in ("shard_rows", "tokens_per_batch", "seed")}


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
        prompts = next(_groups(corpus, encoders, settings, quarantine, min(_PROMPTS_TIMED, corpus.remaining)), [])
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


def _what_is_asked(paths: Sequence[str], settings: EmbedTextSettings) -> dict[str, Any] | None:
    """Return what must be equal for a finished store to need no work; None when the corpus is standard input."""
    fingerprint = corpus_fingerprint(paths, settings.corpus)
    if fingerprint is None:
        return None
    asked = {name: value for name, value in asdict(settings).items() if name not in ("corpus", "max_bad", "device")}
    asked["templates"] = list(settings.templates)
    return {**asked, "corpus": fingerprint, "model": files_hash(settings.clip)}


def _finished(out: Path, asked: dict[str, Any] | None, max_bad: int | None, started: float) -> EmbedTextSummary | None:
    """Return the summary of a store that is finished already."""
    if asked is None or not (out / MANIFEST_FILE).is_file():
        return None
    manifest = Manifest.load(out, "prompts")
    rejected = manifest.details.get("quarantined", 0)
    if QUARANTINE_FILE in manifest.files and not manifest.is_intact(out, QUARANTINE_FILE):
        return None
    if manifest.details.get("finished") != asked or (max_bad is not None and rejected > max_bad):
        return None
    note(f"{out} already holds all {manifest.rows:,} rows of this corpus")
    return EmbedTextSummary(
        out, manifest.rows, 0, rejected, time.monotonic() - started, 0.0, manifest.details["summary"]
    )


def _embed_remaining(filling: Filling, corpus: Corpus, quarantine: Quarantine) -> None:
    """Embed the labels that the store lacks."""
    total = corpus.kept
    corpus.without(filling.making.catalogues)
    with progress("embedding", total, "labels", total - corpus.remaining) as shown:
        groups = _groups(corpus, filling.encoders, filling.settings, quarantine, filling.settings.shard_rows)
        embed_groups(filling, groups, shown)


def _embed_made_up(filling: Filling, corpus: Corpus, quarantine: Quarantine) -> list[tuple[str, str]]:
    """Make up words that complete the corpus, embed those that the store lacks, and return counts of both."""
    encoders, settings = filling.encoders, filling.settings
    rules = settings.corpus
    goal = CoverageGoal(settings.cover_subwords, settings.seed)
    catalogues = filling.making.manifest.catalogues(filling.making.folder)
    made_up = make_up_words(catalogues, encoders, corpus.charset, rules.normalization, goal)
    remaining = made_up.without(catalogues)
    groups = prompts_of([remaining], corpus.charset, rules, encoders, quarantine, settings.shard_rows)
    with progress("embedding made-up words", len(remaining.labels), "labels") as shown:
        embed_groups(filling, groups, shown)
    return made_up.summary(settings.cover_subwords)


def _groups(
    corpus: Corpus, encoders: PromptEncoders, settings: EmbedTextSettings, quarantine: Quarantine, size: int
) -> Iterator[list[Prompt]]:
    return prompts_of(corpus.batches(size), corpus.charset, settings.corpus, encoders, quarantine, size)
