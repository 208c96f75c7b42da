"""A prompt store in the making: its settings, what all its rows share, and its shards.

Shards are made in this process or by the workers of a cluster: the same ones, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dptr.cache.choices import EmbeddingsDtype
from dptr.cache.errors import UserError, require_at_least
from dptr.cache.file_names import PREFIX_FILE
from dptr.cache.progress import Progress, note
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.manifest import FileRecord, Manifest, Shard
from dptr.cache.stores.prompts import CATALOGUE_SCHEMA, TEMPLATE_COLUMN
from dptr.cache.stores.shards import Embeddings, write_embeddings, write_shard
from dptr.cache.text.charset import Charset
from dptr.pipeline.choices import Context, EmbeddingsKind, Precision
from dptr.pipeline.clip.loading import load_clip
from dptr.pipeline.executors.executor import Executor, Work, Worker
from dptr.pipeline.executors.ray_cluster import device_of_worker
from dptr.pipeline.executors.store_builder import Group, Place, ShardToMake, StoreInMaking
from dptr.pipeline.text.corpus import CorpusSettings
from dptr.pipeline.text.prompts import Prompt, PromptEncoders
from dptr.pipeline.text.templates import DEFAULT_TEMPLATE, as_stored

_PROMPTS_CHECKED = 16


@dataclass(frozen=True)
class EmbedTextSettings:
    """How a corpus is embedded.

    Attributes:
        clip: ``tiny``, a directory or a hub id. embeddings: None picks by width (see TextEncoder).
        templates: sentences that labels are spread over.
        dtype: how embeddings are stored. shard_rows: prompts of a shard; peak memory grows with it.
        tokens_per_batch: tokens encoded at once; None: what suits the device.
        cover_subwords: in how many prompts each piece of the tokenizer that the charset can spell is to stand at least;
            words are made up for those that the corpus lacks.
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


def settle_charset(folder: Path, manifest: Manifest, charset: Charset, learnt: bool) -> None:
    """Give a new store its charset, or check that an old one has the same.

    A learnt charset only ever grows with its corpus: the labels that are there still fit.

    Raises:
        DamagedStore: the store's charset is another.
    """
    # What trains on the store normalises labels as it does.
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


@dataclass(frozen=True)
class Filling:
    """A prompt store in the making, and what encodes its prompts."""

    making: StoreInMaking
    encoders: PromptEncoders
    settings: EmbedTextSettings
    executor: Executor


def embed_groups(filling: Filling, groups: Iterable[list[Prompt]], shown: Progress) -> None:
    """Embed prompts shard by shard and commit each in its turn."""
    folder, settings = filling.making.folder, filling.settings
    here = _work_of(folder, filling.encoders, settings, check=True)
    worker = Worker(here, _make_work, (folder.absolute(), settings))
    filling.making.fill(filling.executor, worker, _counted(groups, shown), rows=None)


def _counted(groups: Iterable[list[Prompt]], shown: Progress) -> Iterator[Group]:
    """Yield the prompts of each shard as the one group of it."""
    for prompts in groups:
        labels = [f"{prompt.count} {label}" for prompt in prompts for label in prompt.labels]
        yield Group(len(labels), labels, prompts)
        shown.advance(len(prompts))


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
        return lambda: _write(folder, settings, shard.place, prompts, embeddings)

    return embed


def _write(
    folder: Path, settings: EmbedTextSettings, place: Place, prompts: list[Prompt], embeddings: Embeddings
) -> Shard:
    return write_prompt_shard(
        folder, place.number, place.first_id, prompts, embeddings, settings.dtype, len(settings.templates)
    )


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
    folder: Path,
    number: int,
    first_id: int,
    prompts: list[Prompt],
    embeddings: Embeddings,
    dtype: EmbeddingsDtype,
    templates: int = 1,
) -> Shard:
    """Write shard ``number`` with a row for every label of ``prompts``; the caller commits it.

    Labels of one prompt repeat its embeddings, so that a row can be read by itself; ``embeddings_of`` is the
    id of the first of them. With several ``templates``, each row says which of them it has.

    Raises:
        UserError: a prompt's embeddings are too large for half precision.
    """
    _require_fitting(prompts, embeddings, dtype)
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
    if templates > 1:
        schema = schema.append(TEMPLATE_COLUMN)
        columns[TEMPLATE_COLUMN.name] = pa.array([prompt.template for _, prompt in rows], TEMPLATE_COLUMN.type)
    return write_shard(folder, number, pa.table(columns, schema=schema), embeddings, dtype, {})


def _require_fitting(prompts: list[Prompt], embeddings: Embeddings, dtype: EmbeddingsDtype) -> None:
    """Check that half precision holds token embeddings where they are stored so, and pooled vectors always."""
    if dtype == "float16":
        token = np.abs(embeddings.tokens).max(axis=1, initial=0.0).argmax()
        _require_half(embeddings.tokens[token], prompts[_row_of(token, embeddings)], "Use --dtype float32")
    row = int(np.abs(embeddings.pooled).max(axis=1, initial=0.0).argmax())
    _require_half(embeddings.pooled[row], prompts[row], "Pooled vectors are kept in half precision: use another CLIP")


def _row_of(token: np.intp, embeddings: Embeddings) -> int:
    return int(np.searchsorted(np.cumsum(embeddings.lengths), token, side="right"))


def _require_half(vector: NDArray[np.float32], prompt: Prompt, advice: str) -> None:
    largest = float(np.abs(vector).max())
    if not largest <= float(np.finfo(np.float16).max):
        raise UserError(
            f"the embeddings of the prompt {prompt.text!r} reach {largest:.3g}, beyond the range of float16", advice
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
