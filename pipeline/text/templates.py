"""Label to prompt, and the part of a prompt's tokens that no label can change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dptr.cache.errors import UserError

#: The authors' template. CLIP's tokenizer may fuse the quote with the label ('street' becomes 's + tre + et).
DEFAULT_TEMPLATE = "a photo of a '{label}'"

#: Labels of unlike beginnings: of every kind of character that a tokenizer may put together with what stands before.
_PROBES = [
    "street",
    "\u0301x",
    *"Q7éß中あ한жαعשकก\u094d😀€½",
    *(f"{mark}x" for mark in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~“”‘’«»、。・「」（）…–—"),
    *("s", "t", "re", "ve", "m", "ll", "d"),  # behind a quote, CLIP takes these for contractions
]


@dataclass(frozen=True)
class Tokenized:
    """A prompt's tokens.

    Attributes:
        ids: with begin and end. places: the characters (from, to) that each stands for.
        words: for each, which of the parts it is in that the tokenizer cuts a text into first; None for begin and end.
    """

    ids: list[int]
    places: list[tuple[int, int]]
    words: list[int | None]


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

    def shared_tokens(self, tokenize: Callable[[list[str]], list[Tokenized]]) -> list[int]:
        """Return the token ids that start every prompt, whatever the label.

        A tokenizer cuts a text into words first, at white space or between letters and signs, and no token reaches over
        two of them. So a label can change only the word that it begins in, which depends on what kind of character
        it begins with: what all of :data:`_PROBES` leave alone is shared.
        """
        rows = tokenize([self.prompt(probe) for probe in _PROBES])
        shared = self._before_label(rows[0])
        for row in rows[1:]:
            before = self._before_label(row)
            same = [one == other for one, other in zip(shared, before, strict=False)]
            shared = shared[: same.index(False) if False in same else len(same)]
        return shared

    def _before_label(self, row: Tokenized) -> list[int]:
        """Return the tokens before the word that the label begins in, or would begin in where it left no token."""
        start = len(self.before)
        own = [word for word, (_, stop) in zip(row.words, row.places, strict=True) if word is not None and stop > start]
        first = min(own, default=None)
        if first is None:
            # Nothing of the label is left: what touches it may have gone with it.
            first = max((word for word in row.words if word is not None), default=0)
        before = [word is None or word < first for word in row.words]
        return row.ids[: before.index(False) if False in before else 1]


def as_stored(templates: Sequence[str]) -> str | list[str]:
    """Return templates as a store's manifest has them: one as a text, several as a list."""
    return templates[0] if len(templates) == 1 else list(templates)


def from_store(stored: str | list[str]) -> tuple[str, ...]:
    """Return what :func:`as_stored` made such."""
    return (stored,) if isinstance(stored, str) else tuple(stored)
