"""Shards of a prompt store made again: from their own catalogue where that is whole, else from the corpus."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dptr.cache.charset import Charset
from dptr.cache.errors import UserError
from dptr.cache.file_names import PREFIX_FILE, QUARANTINE_FILE
from dptr.cache.normalization import Normalization
from dptr.cache.stores.prompts import TEMPLATE_COLUMN
from dptr.cache.stores.quarantine import Quarantine
from dptr.pipeline.clip.text_encoder import TOKENS_PER_BATCH
from dptr.pipeline.repair.losses import Losses
from dptr.pipeline.text.corpus import CorpusSettings, read_corpus
from dptr.pipeline.text.prompt_store import (
    EmbedTextSettings,
    encode,
    load_encoders,
    write_prefix_states,
    write_prompt_shard,
)
from dptr.pipeline.text.prompts import Prompt, PromptEncoders, prompts_of
from dptr.pipeline.text.templates import from_store


def rebuild(losses: Losses, scratch: Path) -> None:
    """Write the files that are lost into ``scratch``, under their names.

    Raises:
        UserError: the corpus is needed and gone. DamagedStore: the CLIP is another.
    """
    identity = losses.manifest.identity
    settings = EmbedTextSettings(
        clip=identity["encoder"],
        templates=from_store(identity["template"]),
        seed=identity.get("template_seed", EmbedTextSettings.seed),
        states=identity["states"],
        context=identity["context"],
        precision=identity["precision"],
        dtype=identity["dtype"],
        tokens_per_batch=losses.setting("tokens_per_batch", TOKENS_PER_BATCH),
    )
    encoders, found, _ = load_encoders(settings)
    losses.manifest.require_equal(losses.folder, {"weights": found["weights"], "tokenizer": found["tokenizer"]})
    if PREFIX_FILE in losses.files:
        write_prefix_states(scratch / PREFIX_FILE, encoders)
    with (
        tempfile.TemporaryDirectory(prefix="dptr-") as place,
        closing(_of_corpus(losses, encoders, Path(place))) as anew,
    ):
        for number, shard in losses.shards:
            if shard.catalogue not in losses.files:
                prompts = _of_catalogue(losses.folder / shard.catalogue)
            else:
                prompts = next(anew, [])
            if sum(len(prompt.labels) for prompt in prompts) != shard.rows:
                raise UserError(f"the corpus no longer gives the {shard.rows} rows of {shard.name}", "Make it anew")
            states = encode(encoders, prompts, settings)
            first = losses.place(number).first_id
            write_prompt_shard(scratch, number, first, prompts, states, settings.dtype, len(settings.templates))


def _of_catalogue(path: Path) -> list[Prompt]:
    columns = ["label", "prompt", "token_ids", "token_letters", "states_of", "count", "source", "label_length"]
    several = TEMPLATE_COLUMN.name in pq.read_schema(path).names
    prompts: dict[int, Prompt] = {}
    for row in pq.read_table(path, columns=[*columns, *([TEMPLATE_COLUMN.name] if several else [])]).to_pylist():
        made: dict[str, Any] = {name: row[name] for name in ("token_ids", "token_letters", "count", "source")}
        made |= {"text": row["prompt"], "template": row.get(TEMPLATE_COLUMN.name, 0)}
        known = prompts.setdefault(row["states_of"], Prompt(labels=[], lengths=[], **made))
        known.labels.append(row["label"])
        known.lengths.append(row["label_length"])
    return list(prompts.values())


def _of_corpus(losses: Losses, encoders: PromptEncoders, place: Path) -> Generator[list[Prompt], None, None]:
    """Yield the prompts that no whole catalogue has, in groups as they were embedded."""
    identity = losses.manifest.identity
    charset = Charset.from_text(identity["charset"])
    for entry in losses.inputs():
        told: dict[str, Any] = {**entry["corpus"], "normalization": Normalization(**entry["corpus"]["normalization"])}
        rules = CorpusSettings(**{**told, "charset": charset})
        with (
            Quarantine(place / QUARANTINE_FILE) as quarantine,
            read_corpus(entry["paths"], rules, quarantine) as corpus,
        ):
            corpus.without(losses.whole_catalogues)
            size = int(entry["shard_rows"])
            yield from prompts_of(corpus.batches(size), charset, rules, encoders, quarantine, size)
