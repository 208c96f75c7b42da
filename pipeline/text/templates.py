"""Label to prompt, and the part of a prompt's tokens that no label can change."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dptr.cache.errors import UserError

#: The authors' template. CLIP's tokenizer may fuse the quote with the label ('street' becomes 's + tre + et).
DEFAULT_TEMPLATE = "a photo of a '{label}'"

#: Of unlike beginnings, for tokenizers whose pieces cross white space.
_PROBES = ["street", "Q", "7", "'", "-", "é", "中"]


@dataclass(frozen=True)
class Template:
    """A sentence with exactly one ``{label}`` in it."""

    text: str = DEFAULT_TEMPLATE

    def __post_init__(self) -> None:
        if self.text.count("{label}") != 1:
            raise UserError(
                f"the template {self.text!r} does not hold {{label}} exactly once", "For example: a '{label}'"
            )

    @property
    def before(self) -> str:
        """What stands before the label."""
        return self.text.split("{label}")[0]

    def prompt(self, label: str) -> str:
        """Put a label into the sentence."""
        return self.text.replace("{label}", label)

    def letters_of(self, label: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
        """Return how many of the label's characters each token of its prompt stands for.

        A character that several tokens spell (in bytes) counts for the first of them.

        Args:
            label: what stands in the sentence. offsets: the characters (from, to) of each token, in order.
        """
        counted, last = len(self.before), len(self.before) + len(label)
        letters = []
        for start, stop in offsets:
            new = max(0, min(stop, last) - max(start, counted))
            letters.append(new)
            counted = max(start, counted) + new
        return letters

    def shared_tokens(self, tokenize: Callable[[list[str]], list[list[int]]]) -> list[int]:
        """Return the token ids that start every prompt, whatever the label.

        Tokenizers of the CLIP family split at white space first, so all prompts share the words before the label's own.
        What touches the label is not shared: it may fuse with some label, such as one that starts with a contraction.

        Args:
            tokenize: prompts to token ids, with begin and end.
        """
        whole_words = re.findall(r"\S+(?=\s)", self.before)
        rows = tokenize([" ".join(whole_words), *(self.prompt(probe) for probe in _PROBES)])
        shared: list[int] = []
        for column in zip(*rows, strict=False):
            if len(set(column)) > 1:
                break
            shared.append(column[0])
        return shared
