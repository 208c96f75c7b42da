"""Normalisation: what counts as the same label, and which labels cannot be used."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from dptr.cache.charset import Charset
from dptr.cache.choices import UnicodeForm
from dptr.cache.ranges import require_at_least


@dataclass(frozen=True)
class Normalization:
    """How raw text becomes a label. Part of a store's identity.

    Attributes:
        unicode: Unicode normal form applied first.
        ascii: decompose (NFKD) and drop what is not ASCII, as in the authors' code; off, because it loses labels.
        keep_spaces: keep single spaces inside the label (for lines); otherwise all white space is removed.
        max_label_length: longest label in characters.
    """

    unicode: UnicodeForm = "nfkc"
    ascii: bool = False
    keep_spaces: bool = False
    max_label_length: int = 25

    def __post_init__(self) -> None:
        require_at_least(1, max_label_length=self.max_label_length)

    def apply(self, raw: str) -> str:
        """Return the label of ``raw``; it may be empty or too long, which :meth:`refuse` checks."""
        text = raw
        if self.ascii:
            text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
        elif self.unicode != "none":
            text = unicodedata.normalize(self.unicode.upper(), text)  # type: ignore[arg-type]
        return " ".join(text.split()) if self.keep_spaces else "".join(text.split())

    def refuse(self, label: str, charset: Charset) -> str | None:
        """Return why ``label`` cannot be used, or None when it can."""
        if not label:
            return "empty"
        if len(label) > self.max_label_length:
            return f"longer than {self.max_label_length} characters"
        missing = charset.missing(label)
        return f"not in the charset: {_visible(missing)}" if missing else None


def _visible(characters: str) -> str:
    """Return characters as a line can show them: those that print nothing go by name or number."""
    shown = "".join(character for character in characters if character.isprintable() and character != " ")
    hidden = [f"U+{ord(character):04X}" for character in characters if not character.isprintable()]
    return ", ".join([*([shown] if shown else []), *(["space"] if " " in characters else []), *hidden])
