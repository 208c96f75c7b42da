"""Label to prompt, and the tokens that all prompts share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dptr.cache.errors import UserError

#: The authors' template. CLIP's tokenizer may fuse the quote with the label ('street' becomes 's + tre + et).
DEFAULT_TEMPLATE = "a photo of a '{label}'"

#: Labels with different first characters: of every class that a tokenizer may merge with the preceding text.
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
        ids: with begin and end. places: the characters (from, to) that each covers.
        words: index of each token's pre-tokenized word; None for begin and end.
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
        """The text before the label."""
        return self.text.split("{label}")[0]

    def prompt(self, label: str) -> str:
        """Insert a label into the sentence."""
        return self.text.replace("{label}", label)

    def letters_of(self, label: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
        """Return the number of label characters that each token of its prompt covers.

        A character that several tokens spell (in bytes) counts for the first of them.

        Args:
            label: of the prompt. offsets: the characters (from, to) of each token, in order.
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

        A tokenizer first splits a text into words, at white space or between letters and signs, and no token spans two
        of them. So a label can change only the word that it starts in, which depends on the class of its first
        character: tokens that are equal for all of :data:`_PROBES` are shared.
        """
        rows = tokenize([self.prompt(probe) for probe in _PROBES])
        shared = self._before_label(rows[0])
        for row in rows[1:]:
            before = self._before_label(row)
            same = [one == other for one, other in zip(shared, before, strict=False)]
            shared = shared[: same.index(False) if False in same else len(same)]
        return shared

    def _before_label(self, row: Tokenized) -> list[int]:
        """Return the tokens before the word that the label starts in."""
        start = len(self.before)
        own = [word for word, (_, stop) in zip(row.words, row.places, strict=True) if word is not None and stop > start]
        first = min(own, default=None)
        if first is None:
            # The label has no token: its neighbours may have been merged with it.
            first = max((word for word in row.words if word is not None), default=0)
        before = [word is None or word < first for word in row.words]
        return row.ids[: before.index(False) if False in before else 1]


def as_stored(templates: Sequence[str]) -> str | list[str]:
    """Return templates as in a store's manifest: one as a text, several as a list."""
    return templates[0] if len(templates) == 1 else list(templates)


def from_store(stored: str | list[str]) -> tuple[str, ...]:
    """Return templates from their form in a manifest."""
    return (stored,) if isinstance(stored, str) else tuple(stored)
