"""Charsets: which characters a decoder can emit, in which order, and what evaluation makes of the others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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


#: Zero-width joiners: invisible, but Persian and the Indic scripts spell with them.
JOINERS = "\u200c\u200d"
_SPACE = "+space"


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

        ``+space`` behind either adds the space, which labels that are whole lines need.

        Raises:
            UserError: neither a known name nor a readable file of printable characters, each once.
        """
        if name.endswith(_SPACE):
            return cls(cls.named(name.removesuffix(_SPACE)).characters + " ")
        if name in NAMED_CHARACTERS:
            return cls(NAMED_CHARACTERS[name])
        path = Path(name)
        if not path.is_file():
            raise UserError(f"no charset called {name!r}", "Use 36, 62, 94 or a UTF-8 file with the characters")
        try:
            # Some editors put a byte-order mark in front, which is no character of the charset.
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"the charset {path} is not UTF-8 (byte {error.start + 1})", "Save it as UTF-8") from error
        except OSError as error:
            raise UserError(f"the charset {path} cannot be read ({error.strerror})", "Check its permissions") from error
        characters = text.replace("\n", "").replace("\r", "")
        hidden = next((c for c in characters if not (c.isprintable() or c in JOINERS)), None)
        if hidden is not None:
            raise UserError(f"the charset {path} has U+{ord(hidden):04X}, which prints nothing", "Remove it")
        try:
            return cls(characters)
        except UserError as error:
            raise UserError(f"{path}: {error.problem}", error.advice) from error

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
        """Return the text of a row of ids, shape (length,), up to the first end."""
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
