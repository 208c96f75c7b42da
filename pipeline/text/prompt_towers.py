"""Labels spread over templates: each has one of them, by the seed and the label alone, and a tower for each of them.

Which template a label has depends on nothing that a run may change: not on the order of the corpus, on what a store has
already, or on which part of it is made. So a killed run goes on, and parts make the whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from dptr.cache.stores.shards import States
from dptr.pipeline.choices import Context, StatesKind
from dptr.pipeline.clip.loading import Clip
from dptr.pipeline.clip.text_tower import TextTower
from dptr.pipeline.text.templates import Template


class PromptTowers:
    """One CLIP's text tower for each of several templates.

    Args:
        clip: a loaded CLIP. templates: sentences that labels stand in. seed: of which label has which.
        states, context: as :class:`~dptr.pipeline.clip.text_tower.TextTower` takes them.

    Attributes:
        towers: one for each template, in order.

    Raises:
        UserError: as of a TextTower.
    """

    def __init__(
        self,
        clip: Clip,
        templates: Sequence[str],
        seed: int = 0,
        states: StatesKind | None = None,
        context: Context = "content",
    ) -> None:
        self.towers = [TextTower(clip, Template(text), states, context) for text in templates]
        self._seed = seed

    @property
    def first(self) -> TextTower:
        """The tower of the first template: what does not depend on the template can be asked of it."""
        return self.towers[0]

    def which(self, label: str) -> int:
        """Return the number of a label's template."""
        return zlib.crc32(f"{self._seed} {label}".encode("utf-8", "surrogatepass")) % len(self.towers)

    def encode(
        self, token_ids: Sequence[list[int]], which: Sequence[int], tokens_per_batch: int | None = None
    ) -> States:
        """Encode tokenized prompts, each of the template of that number; see :meth:`TextTower.encode`.

        Returns:
            their states after their templates' prefixes, in the order given.
        """
        numbers = sorted(set(which))
        of_each = [[row for row, template in enumerate(which) if template == number] for number in numbers]
        made = [
            self.towers[number].encode([token_ids[row] for row in rows], tokens_per_batch)
            for number, rows in zip(numbers, of_each, strict=True)
        ]
        if len(made) == 1:
            return made[0]
        joined = States(
            np.concatenate([states.tokens for states in made]),
            np.concatenate([states.lengths for states in made]),
            np.concatenate([states.pooled for states in made]),
        )
        return joined.at(np.argsort(np.concatenate([np.array(rows, np.int64) for rows in of_each])))

    def check(self, token_ids: Sequence[list[int]], which: Sequence[int]) -> float:
        """Compare prompts with transformers' own forward; see :meth:`TextTower.check`, the worst of all towers."""
        apart = [
            tower.check([ids for ids, template in zip(token_ids, which, strict=True) if template == number])
            for number, tower in enumerate(self.towers)
            if number in which
        ]
        return max(apart)
