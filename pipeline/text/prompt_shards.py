"""Prompts to the shards of a store, made in this process or by the workers of a cluster: the same ones, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dptr.cache.progress import Progress, note
from dptr.cache.stores.shard_record import Shard
from dptr.cache.stores.shards import States, remove_unfinished
from dptr.pipeline.parts.cluster import Cluster, device_of_worker
from dptr.pipeline.parts.store_in_making import Place, StoreInMaking
from dptr.pipeline.text.embed_settings import EmbedTextSettings
from dptr.pipeline.text.prompt_shard import write_prompt_shard
from dptr.pipeline.text.prompt_store import load_towers
from dptr.pipeline.text.prompt_towers import PromptTowers
from dptr.pipeline.text.prompts import Prompt

_PROMPTS_CHECKED = 16

#: A shard to be made: where it comes in the store, and what it is made of.
_Work = tuple[Place, list[Prompt]]


@dataclass(frozen=True)
class Filling:
    """A prompt store in the making, and what encodes its prompts."""

    making: StoreInMaking
    towers: PromptTowers
    settings: EmbedTextSettings
    cluster: Cluster | None


def embed_groups(filling: Filling, groups: Iterable[list[Prompt]], shown: Progress) -> None:
    """Embed prompts shard by shard and commit each in its turn."""
    wanted = _wanted(filling.making, groups, shown)
    made = _made_here(filling, wanted) if filling.cluster is None else _made_there(filling, filling.cluster, wanted)
    for shard in made:
        filling.making.commit(shard)


def _wanted(making: StoreInMaking, groups: Iterable[list[Prompt]], shown: Progress) -> Iterator[_Work]:
    """Yield the shards that are to be made; those of other parts are passed over."""
    for prompts in groups:
        wanted, place = making.wants_next, making.pass_on(sum(len(prompt.labels) for prompt in prompts))
        if wanted:
            yield place, prompts
        shown.advance(len(prompts))


def _made_here(filling: Filling, wanted: Iterable[_Work]) -> Iterator[Shard]:
    """Make shards in this process: one is written while the next is being encoded."""
    with ThreadPoolExecutor(max_workers=1) as writer:
        writing: Future[Shard] | None = None
        for place, prompts in wanted:
            if writing is None:
                _check(filling.towers, prompts)
            states = encode(filling.towers, prompts, filling.settings)
            if writing is not None:
                yield writing.result()
            writing = writer.submit(_write, filling.making.folder, filling.settings, place, prompts, states)
        if writing is not None:
            yield writing.result()


def _made_there(filling: Filling, cluster: Cluster, wanted: Iterable[_Work]) -> Iterator[Shard]:
    """Let the workers of a cluster make shards."""
    yield from cluster.in_order(_shard_maker, (filling.making.folder.absolute(), filling.settings), wanted)
    remove_unfinished(filling.making.folder)


def _shard_maker(folder: Path, settings: EmbedTextSettings) -> Callable[[_Work], Shard]:
    """Return what makes a shard in a worker."""
    settings = replace(settings, device=device_of_worker())
    towers, _, _ = load_towers(settings)

    def make(work: _Work) -> Shard:
        place, prompts = work
        return _write(folder, settings, place, prompts, encode(towers, prompts, settings))

    return make


def _write(folder: Path, settings: EmbedTextSettings, place: Place, prompts: list[Prompt], states: States) -> Shard:
    return write_prompt_shard(
        folder, place.number, place.first_id, prompts, states, settings.dtype, len(settings.templates)
    )


def encode(towers: PromptTowers, prompts: list[Prompt], settings: EmbedTextSettings) -> States:
    """Return the states of prompts."""
    return towers.encode(*_tokens_and_templates(prompts), settings.tokens_per_batch)


def _check(towers: PromptTowers, prompts: list[Prompt]) -> None:
    spread = np.linspace(0, len(prompts) - 1, min(_PROMPTS_CHECKED, len(prompts))).astype(int)
    apart = towers.check(*_tokens_and_templates([prompts[i] for i in spread]))
    note(f"text states agree with transformers' own to {apart:.1e}")


def _tokens_and_templates(prompts: list[Prompt]) -> tuple[list[list[int]], list[int]]:
    return [prompt.token_ids for prompt in prompts], [prompt.template for prompt in prompts]
