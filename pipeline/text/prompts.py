"""Labels to prompts: each with its tokens and the labels that share its embeddings.

A label's template depends only on the seed and the label, not on the order of the corpus, the contents of the store or
the part. So killed runs resume, and parts equal the whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dptr.cache.choices import Context, EmbeddingsKind
from dptr.cache.rejections import Quarantine
from dptr.cache.stores.shards import Embeddings
from dptr.cache.text.charset import Charset
from dptr.pipeline.clip.loading import Clip
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.text.corpus import CorpusSettings, LabelBatch, case_variants
from dptr.pipeline.text.templates import Template


@dataclass(frozen=True)
class Prompt:
    """One prompt, encoded once.

    Attributes:
        labels: targets of its embeddings: the corpus's label, or its case variants.
        text: the prompt. token_ids: its tokens, begin and end included.
        token_letters: number of label characters that each token covers; 0 for the template's and the end.
        lengths: number of units of each of ``labels``.
        count: of the label in the corpus. source: the file of its first occurrence.
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


class PromptEncoders:
    """One CLIP's text encoder for each of several templates.

    Args:
        clip: a loaded CLIP. templates: sentences that labels stand in. seed: of which label has which.
        embeddings, context: as :class:`~dptr.pipeline.clip.text_encoder.TextEncoder` takes them.

    Attributes:
        encoders: one for each template, in order.

    Raises:
        UserError: as of a TextEncoder.
    """

    def __init__(
        self,
        clip: Clip,
        templates: Sequence[str],
        seed: int = 0,
        embeddings: EmbeddingsKind | None = None,
        context: Context = "content",
    ) -> None:
        self.of_template = [TextEncoder(clip, Template(text), embeddings, context) for text in templates]
        self._seed = seed

    @property
    def first(self) -> TextEncoder:
        """The encoder of the first template, for everything that does not depend on the template."""
        return self.of_template[0]

    def which(self, label: str) -> int:
        """Return the number of a label's template."""
        return zlib.crc32(f"{self._seed} {label}".encode("utf-8", "surrogatepass")) % len(self.of_template)

    def encode(
        self, token_ids: Sequence[list[int]], which: Sequence[int], tokens_per_batch: int | None = None
    ) -> Embeddings:
        """Encode tokenized prompts, each of the template of that number; see :meth:`TextEncoder.encode`.

        Returns:
            their embeddings after their templates' prefixes, in the order given.
        """
        numbers = sorted(set(which))
        of_each = [[row for row, template in enumerate(which) if template == number] for number in numbers]
        made = [
            self.of_template[number].encode([token_ids[row] for row in rows], tokens_per_batch)
            for number, rows in zip(numbers, of_each, strict=True)
        ]
        if len(made) == 1:
            return made[0]
        joined = Embeddings(
            np.concatenate([embeddings.tokens for embeddings in made]),
            np.concatenate([embeddings.lengths for embeddings in made]),
            np.concatenate([embeddings.pooled for embeddings in made]),
        )
        return joined.at(np.argsort(np.concatenate([np.array(rows, np.int64) for rows in of_each])))

    def check(self, token_ids: Sequence[list[int]], which: Sequence[int]) -> float:
        """Compare prompts with transformers' own forward; see :meth:`TextEncoder.check`, the worst of all encoders."""
        apart = [
            encoder.check([ids for ids, template in zip(token_ids, which, strict=True) if template == number])
            for number, encoder in enumerate(self.of_template)
            if number in which
        ]
        return max(apart)


def prompts_of(
    batches: Iterable[LabelBatch],
    charset: Charset,
    settings: CorpusSettings,
    encoders: PromptEncoders,
    quarantine: Quarantine,
    size: int,
) -> Iterator[list[Prompt]]:
    """Yield labels as prompts in groups of ``size``; record labels that cannot be encoded as rejected.

    Groups are cut by accepted labels, so that a resumed run cuts them at the same places.
    """
    group: list[Prompt] = []
    for batch in batches:
        which = [encoders.which(label) for label in batch.labels]
        texts = [encoders.of_template[n].template.prompt(label) for n, label in zip(which, batch.labels, strict=True)]
        for label, number, text, row, count, source in zip(
            batch.labels,
            which,
            texts,
            encoders.first.tokenize_with_places(texts),
            batch.counts.tolist(),
            batch.sources,
            strict=True,
        ):
            encoder, labels = encoders.of_template[number], _variants(label, settings, charset)
            letters = encoder.template.letters_of(label, row.places)
            reason = _reject(labels, row.ids, letters, encoder)
            if reason is not None:
                quarantine.reject(source, None, label, reason)
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
        return [label]  # the corpus has checked it
    variants = case_variants(label, settings.case)
    return [variant for variant in variants if settings.normalization.reject(variant, charset) is None]


def _reject(labels: list[str], token_ids: list[int], letters: list[int], encoder: TextEncoder) -> str | None:
    if not labels:
        return "no case variant fits the charset and the length"
    return encoder.why_unusable(token_ids) or (None if any(letters) else "the tokenizer leaves nothing of the label")
