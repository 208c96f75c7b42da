"""Labels to prompts, ready to be encoded: each with its tokens, and with the labels that will be rows of its states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dptr.cache.charset import Charset
from dptr.cache.stores.quarantine import Quarantine
from dptr.pipeline.clip.text_tower import TextTower
from dptr.pipeline.text.corpus import CorpusSettings, LabelBatch, case_variants
from dptr.pipeline.text.prompt_towers import PromptTowers


@dataclass(frozen=True)
class Prompt:
    """One prompt, which is encoded once.

    Attributes:
        labels: what its states are to be read as: the corpus's label, or the case variants of it.
        text: the prompt. token_ids: its tokens, begin and end included.
        token_letters: how many of the label's characters each token stands for; 0 for the template's and the end.
        lengths: how many units each of ``labels`` has.
        count: how often the label stood in the corpus. source: the file where it stood first.
        template: the number of its template.
    """

    labels: list[str]
    text: str
    token_ids: list[int]
    token_letters: list[int]
    count: int
    source: str
    lengths: list[int]
    template: int = 0


def prompts_of(
    batches: Iterable[LabelBatch],
    charset: Charset,
    settings: CorpusSettings,
    towers: PromptTowers,
    quarantine: Quarantine,
    size: int,
) -> Iterator[list[Prompt]]:
    """Yield labels as prompts in groups of ``size``; what cannot be encoded goes to quarantine.

    Groups are cut by what is accepted, so that a run that goes on cuts them where an undisturbed one does.
    """
    group: list[Prompt] = []
    for batch in batches:
        which = [towers.which(label) for label in batch.labels]
        texts = [towers.towers[n].template.prompt(label) for n, label in zip(which, batch.labels, strict=True)]
        for label, number, text, row, count, source in zip(
            batch.labels,
            which,
            texts,
            towers.first.tokenize_with_places(texts),
            batch.counts.tolist(),
            batch.sources,
            strict=True,
        ):
            tower, labels = towers.towers[number], _variants(label, settings, charset)
            letters = tower.template.letters_of(label, row.places)
            reason = _refuse(labels, row.ids, letters, tower)
            if reason is not None:
                quarantine.refuse(source, None, label, reason)
                continue
            lengths = [*map(charset.length, labels)]
            group.append(Prompt(labels, text, row.ids, letters, count, source, lengths, number))
            if len(group) == size:
                yield group
                group = []
    if group:
        yield group


def _variants(label: str, settings: CorpusSettings, charset: Charset) -> list[str]:
    if settings.case != "upper-lower-title":
        return [label]  # the corpus has judged it
    variants = case_variants(label, settings.case)
    return [variant for variant in variants if settings.normalization.refuse(variant, charset) is None]


def _refuse(labels: list[str], token_ids: list[int], letters: list[int], tower: TextTower) -> str | None:
    if not labels:
        return "no case variant fits the charset and the length"
    return tower.why_unusable(token_ids) or (None if any(letters) else "the tokenizer leaves nothing of the label")
