"""How a corpus is embedded: every setting of the command, its default and the range it may lie in."""

from __future__ import annotations

from dataclasses import dataclass, field

from dptr.cache.choices import StatesDtype
from dptr.cache.errors import UserError
from dptr.cache.ranges import require_at_least
from dptr.pipeline.choices import Context, Precision, StatesKind
from dptr.pipeline.text.corpus import CorpusSettings
from dptr.pipeline.text.templates import DEFAULT_TEMPLATE


@dataclass(frozen=True)
class EmbedTextSettings:
    """How a corpus is embedded.

    Attributes:
        clip: ``tiny``, a directory or a hub id. states: None picks by width (see TextTower).
        templates: sentences that labels are spread over.
        dtype: how states are stored. shard_rows: prompts of a shard; peak memory grows with it.
        tokens_per_batch: tokens encoded at once; None: what suits the device.
        cover_pieces: in how many prompts each piece of the tokenizer that the charset can spell is to stand at least;
            words are made up for those that the corpus lacks.
        seed: of the made-up words, and of which label has which template.
        max_bad: most refused inputs before the command fails; None for no limit.
    """

    corpus: CorpusSettings = field(default_factory=CorpusSettings)
    clip: str = "tiny"
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)
    states: StatesKind | None = None
    context: Context = "content"
    precision: Precision = "fp32"
    dtype: StatesDtype = "float16"
    shard_rows: int = 16384
    tokens_per_batch: int | None = None
    cover_pieces: int = 0
    seed: int = 0
    max_bad: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_at_least(1, shard_rows=self.shard_rows, tokens_per_batch=self.tokens_per_batch)
        if not self.templates or len(set(self.templates)) < len(self.templates):
            raise UserError("a template is missing, or given twice", "Give each --template once")
        require_at_least(0, max_bad=self.max_bad, cover_pieces=self.cover_pieces, seed=self.seed)
