"""Labels: what counts as the same label, and which characters a decoder can emit."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dptr.cache.choices import UnicodeForm
from dptr.cache.errors import UserError

_DIGITS_AND_LOWER = "0123456789abcdefghijklmnopqrstuvwxyz"
_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"

#: The field's three evaluation charsets, by their number of characters.
NAMED_CHARACTERS = {
    "36": _DIGITS_AND_LOWER,
    "62": _DIGITS_AND_LOWER + _UPPER,
    "94": _DIGITS_AND_LOWER + _UPPER + _PUNCTUATION,
}

LetterCase = Literal["lower", "upper"]


@dataclass(frozen=True)
class Charset:
    """An ordered set of characters with the ids that decoders use.

    Ids: 0 ends a label, 1..n are the characters in order, n+1 begins a label, n+2 is padding. A decoder emits the first
    n+1 classes only, so that beginning and padding can never be predicted (as in PARSeq).
    """

    characters: str

    def __post_init__(self) -> None:
        if not self.characters:
            raise UserError("the charset is empty", "Give at least one character")
        if len(set(self.characters)) != len(self.characters):
            twice = sorted({c for c in self.characters if self.characters.count(c) > 1})
            raise UserError(f"the charset names {''.join(twice)!r} more than once", "List each character once")

    @classmethod
    def named(cls, name: str) -> Charset:
        """Return charset ``36``, ``62`` or ``94``, or the characters of a UTF-8 file (line breaks are not characters).

        Raises:
            UserError: neither a known name nor a readable file.
        """
        if name in NAMED_CHARACTERS:
            return cls(NAMED_CHARACTERS[name])
        path = Path(name)
        if not path.is_file():
            raise UserError(f"no charset called {name!r}", "Use 36, 62, 94 or a UTF-8 file with the characters")
        return cls("".join(dict.fromkeys(path.read_text(encoding="utf-8").replace("\n", "").replace("\r", ""))))

    end = 0

    @property
    def begin(self) -> int:
        """Id that starts every decoder input."""
        return len(self.characters) + 1

    @property
    def padding(self) -> int:
        """Id that fills a batch up to its longest label."""
        return len(self.characters) + 2

    @property
    def classes(self) -> int:
        """How many classes a decoder predicts: the end and every character."""
        return len(self.characters) + 1

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {character: index + 1 for index, character in enumerate(self.characters)}

    def missing(self, label: str) -> str:
        """Return the characters of ``label`` that this charset lacks, each once, in order."""
        return "".join(dict.fromkeys(c for c in label if c not in self._id_of))

    def encode(self, label: str) -> NDArray[np.int64]:
        """Return the ids of ``label``'s characters, without beginning and end, shape (len(label),).

        Raises:
            UserError: a character is not in the charset.
        """
        try:
            return np.fromiter((self._id_of[c] for c in label), np.int64, len(label))
        except KeyError:
            raise UserError(
                f"label {label!r} has {self.missing(label)!r}, which the charset lacks",
                "Choose a charset that covers the labels (--charset)",
            ) from None

    def decode(self, ids: NDArray[np.int64]) -> str:
        """Return the text of a row of ids, up to the first end."""
        characters: list[str] = []
        for index in ids.tolist():
            if index == self.end:
                break
            if index <= len(self.characters):
                characters.append(self.characters[index - 1])
        return "".join(characters)

    @cached_property
    def one_case(self) -> LetterCase | None:
        """The case of the charset's letters; None when it has both cases, or no letter that has one."""
        lower, upper = any(c.islower() for c in self.characters), any(c.isupper() for c in self.characters)
        if lower == upper:
            return None
        return "lower" if lower else "upper"

    def fold_case(self, text: str) -> str:
        """Return ``text`` in the charset's case where it has one case only, as the field does; else unchanged."""
        return fold_case(text, self.one_case)

    def project(self, text: str) -> str:
        """Map ``text`` onto this charset as the field's evaluation does.

        A charset of one case folds case; then every character outside the charset is removed.
        """
        return "".join(c for c in self.fold_case(text) if c in self._id_of)


def fold_case(text: str, case: LetterCase | None) -> str:
    """Return ``text`` in lower or upper case; unchanged for None."""
    return text.lower() if case == "lower" else text.upper() if case == "upper" else text


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

    def apply(self, raw: str) -> str:
        """Return the label of ``raw``; it may be empty or too long, which :meth:`refuse` tells."""
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
        return f"not in the charset: {missing}" if missing else None
