"""Prompts to the shards of a store, made in this process or by the workers of a cluster: the same ones, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dptr.cache.progress import Progress, note
from dptr.cache.stores.manifest import Shard
from dptr.cache.stores.shards import States
from dptr.pipeline.parts.cluster import device_of_worker
from dptr.pipeline.parts.executors import Executor, Work, Worker
from dptr.pipeline.parts.store_in_making import Group, Place, ShardToMake, StoreInMaking
from dptr.pipeline.text.embed_settings import EmbedTextSettings
from dptr.pipeline.text.prompt_shard import write_prompt_shard
from dptr.pipeline.text.prompt_store import load_towers
from dptr.pipeline.text.prompt_towers import PromptTowers
from dptr.pipeline.text.prompts import Prompt

_PROMPTS_CHECKED = 16


@dataclass(frozen=True)
class Filling:
    """A prompt store in the making, and what encodes its prompts."""

    making: StoreInMaking
    towers: PromptTowers
    settings: EmbedTextSettings
    executor: Executor


def embed_groups(filling: Filling, groups: Iterable[list[Prompt]], shown: Progress) -> None:
    """Embed prompts shard by shard and commit each in its turn."""
    folder, settings = filling.making.folder, filling.settings
    here = _work_of(folder, filling.towers, settings, check=True)
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
    towers, _, _ = load_towers(settings)
    return _work_of(folder, towers, settings, check=False)


def _work_of(folder: Path, towers: PromptTowers, settings: EmbedTextSettings, check: bool) -> Work[Shard]:
    def embed(shard: ShardToMake) -> Callable[[], Shard]:
        nonlocal check
        (prompts,) = shard.payloads
        if check:
            _check(towers, prompts)
            check = False
        states = encode(towers, prompts, settings)
        return lambda: _write(folder, settings, shard.place, prompts, states)

    return embed


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
