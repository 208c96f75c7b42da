"""Normalisation: raw text to labels, and the reasons for rejecting labels."""

from __future__ import annotations

import unicodedata
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from dptr.cache.choices import UnicodeForm, Units
from dptr.cache.errors import UserError, require_at_least
from dptr.cache.progress import note
from dptr.cache.text.charset import Charset
from dptr.cache.text.units import split

#: Maximum code points of a cluster: emoji of families have eleven.
_MOST_OF_A_CLUSTER = 16


@dataclass(frozen=True)
class Normalization:
    """Rules from raw text to a label. Part of a store's identity.

    Attributes:
        unicode: Unicode normal form applied first.
        ascii: decompose (NFKD) and drop what is not ASCII, as in the authors' code; off, because it loses labels.
        keep_spaces: keep single spaces inside the label (for lines); otherwise all white space is removed.
        simplified: fold traditional Chinese to simplified, word by word; other text stays as it is.
        max_label_length: longest label in units of its charset.
    """

    unicode: UnicodeForm = "nfkc"
    ascii: bool = False
    keep_spaces: bool = False
    max_label_length: int = 25
    simplified: bool = False

    def __post_init__(self) -> None:
        require_at_least(1, max_label_length=self.max_label_length)

    @classmethod
    def of(cls, charset: Charset, max_label_length: int = 25, simplified: bool = False) -> Normalization:
        """Return the normalisation of a charset's labels: in its normal form, with spaces if it has one."""
        return cls(charset.unicode, False, " " in charset.characters, max_label_length, simplified)

    def apply(self, raw: str) -> str:
        """Return the label of ``raw``; it may be empty or too long, which :meth:`reject` checks."""
        parts = self._in_form(raw).split()
        return " ".join(parts) if self.keep_spaces else "".join(parts)

    def _in_form(self, text: str) -> str:
        """Return ``text`` in the Unicode form, with its white space unchanged."""
        if self.ascii:
            text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
        elif self.unicode != "none":
            text = unicodedata.normalize(self.unicode.upper(), text)  # type: ignore[arg-type]
        return simplify(text) if self.simplified else text

    def charset(self, named: Charset, begun: Charset | None = None) -> Charset:
        """Return ``named`` for labels in this normal form, extended by :meth:`added_to`, with a note.

        Args:
            named: the requested charset.
            begun: that of the store or run to be resumed; one that was begun with ``named`` alone stays so.
        """
        if begun is not None and begun.same_units_as(named):
            return begun
        named = named if named.unicode == self.unicode else replace(named, unicode=self.unicode)
        added = self.added_to(named)
        if not added:
            return named
        note(f"added to the charset, since normalisation maps other characters to them: {_visible(''.join(added))}")
        both = (*named.characters, *added)
        return replace(named, characters=both if named.units == "grapheme" else "".join(both))

    def added_to(self, named: Charset) -> list[str]:
        """Return the units that normalisation maps units of ``named`` to, and that it lacks.

        NFKC decomposes Thai sara am and ligatures, and maps full-width letters. Units of ``named`` keep their ids even
        if no label can contain them.
        """
        known = set(named.characters)
        written = (form for unit in named.characters for form in split(self._in_form(unit), named.units))
        return [form for form in dict.fromkeys(written) if form not in known and not form.isspace()]

    def identity(self) -> dict[str, Any]:
        """Return it as a part of a store's identity."""
        return asdict(self)

    def most_code_points(self, units: Units) -> int:
        """Return the maximum number of code points of a label."""
        return self.max_label_length * (1 if units == "codepoint" else _MOST_OF_A_CLUSTER)

    def reject(self, label: str, charset: Charset) -> str | None:
        """Return why ``label`` cannot be used, or None when it can."""
        if not label:
            return "empty"
        if len(label) > self.most_code_points(charset.units) or charset.length(label) > self.max_label_length:
            return f"longer than {self.max_label_length} characters"
        missing = charset.missing(label)
        return f"not in the charset: {_visible(missing)}" if missing else None


def simplify(text: str) -> str:
    """Return ``text`` with traditional Chinese converted to simplified."""
    simplified: str = _to_simplified().convert(text)
    return simplified


@lru_cache(maxsize=1)
def _to_simplified() -> Any:
    try:
        from opencc import OpenCC
    except ModuleNotFoundError as error:
        raise UserError("folding traditional Chinese needs opencc", "pip install 'dptr[chinese]'") from error
    return OpenCC("t2s")


def _visible(characters: str) -> str:
    """Return characters for a message: invisible ones by name or number."""
    shown = "".join(character for character in characters if character.isprintable() and character != " ")
    hidden = [f"U+{ord(character):04X}" for character in characters if not character.isprintable()]
    return ", ".join([*([shown] if shown else []), *(["space"] if " " in characters else []), *hidden])
