"""Charsets: the units a decoder can emit, their order, and how evaluation maps other units.

Names are of the field's three, of languages, and of files; ``94+ru`` joins two. Those of languages are in
``charsets/``; ``examples/charsets/make_charsets.py`` makes them from data of Unicode and CLDR. ``ar``, ``hi`` and
``th`` have combining marks: their default units are the grapheme clusters of the corpus.

Charset files, stores, runs and model files hold a charset as text. Most are the characters on one line. Otherwise a
first line gives the units, the order in which a decoder emits them and the Unicode normal form of labels, and each
further line is a unit::

    # units: grapheme, order: visual, unicode: nfc

A charset on one line cannot start like this, as it would contain characters twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from dptr.cache.choices import ReadingOrder, UnicodeForm, Units
from dptr.cache.errors import UserError
from dptr.cache.text import reading_order
from dptr.cache.text.units import JOINERS, clusters, is_mark, number_of_units, split

LetterCase = Literal["lower", "upper"]

_FORMS = "|".join(get_args(UnicodeForm))
_HEAD = re.compile(rf"# units: (codepoint|grapheme)(?:, order: (logical|visual))?(?:, unicode: ({_FORMS}))?")

_DIGITS_AND_LOWER = "0123456789abcdefghijklmnopqrstuvwxyz"
_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"

#: The field's three evaluation charsets, by their number of characters.
NAMED_CHARACTERS = {
    "36": _DIGITS_AND_LOWER,
    "62": _DIGITS_AND_LOWER + _UPPER,
    "94": _DIGITS_AND_LOWER + _UPPER + _PUNCTUATION,
    "space": " ",
}
#: Files of characters, a charset each.
SCRIPTS = Path(__file__).parent / "charsets"


@dataclass(frozen=True)
class Charset:
    """An ordered set of units with the ids that decoders use.

    Ids: 0 ends a label, 1..n are the units in order, n+1 begins a label, n+2 is padding. A decoder emits the first
    n+1 classes only, so that beginning and padding can never be predicted (as in PARSeq).

    Attributes:
        characters: a string of code points, or a tuple of grapheme clusters.
        units: the kind of unit.
        order: in which a decoder emits the units of a label: logical (as written), or visual (from left to right). By
            default visual if the charset has right-to-left letters; a run chooses it by the kind of its decoder.
        unicode: the Unicode normal form of labels, that of the store's or run's normalisation.
    """

    characters: str | tuple[str, ...]
    units: Units = "codepoint"
    order: ReadingOrder | None = None
    unicode: UnicodeForm = "nfkc"

    def __post_init__(self) -> None:
        if not self.characters:
            raise UserError("the charset is empty", "Give at least one character")
        if len(set(self.characters)) != len(self.characters):
            twice = sorted(unit for unit, count in Counter(self.characters).items() if count > 1)
            raise UserError(f"the charset names {''.join(twice)!r} more than once", "List each character once")
        of_one = isinstance(self.characters, str) and self.units == "codepoint"
        wrong = None if of_one else next((u for u in self.characters if number_of_units(u, self.units) != 1), None)
        if wrong is not None:
            raise UserError(f"the charset has {wrong!r}, which is not one {self.units}", "Give one at a time")
        if self.order is None:
            object.__setattr__(self, "order", "visual" if self.runs_right_to_left else "logical")

    @classmethod
    def named(cls, name: str) -> Charset:
        """Return the charset of a name, of a UTF-8 file, or of several joined by ``+``, as in ``94+ru``.

        Of several, the distinct units in order; grapheme clusters if one of them has clusters.

        Raises:
            UserError: there is no such charset, or a file holds none.
        """
        parts = name.split("+")
        if len(parts) == 1 or "" in parts or Path(name).is_file():
            return cls._one(name)
        charsets = [cls._one(part) for part in parts]
        characters = tuple(dict.fromkeys(unit for charset in charsets for unit in charset.characters))
        if any(charset.units == "grapheme" for charset in charsets):
            return cls(characters, "grapheme")
        return cls("".join(characters))

    @classmethod
    def _one(cls, name: str) -> Charset:
        if name in NAMED_CHARACTERS:
            return cls(NAMED_CHARACTERS[name])
        path = SCRIPTS / f"{name}.txt" if name in names() else Path(name)
        if not path.is_file():
            known = ", ".join([*NAMED_CHARACTERS, *names()])
            raise UserError(f"no charset called {name!r}", f"Use {known}, or a UTF-8 file with the characters")
        try:
            # Some editors write a byte-order mark, which is no character of the charset.
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"the charset {path} is not UTF-8 (byte {error.start + 1})", "Save it as UTF-8") from error
        except OSError as error:
            raise UserError(f"the charset {path} cannot be read ({error.strerror})", "Check its permissions") from error
        try:
            found = cls._parsed(text)
        except UserError as error:
            raise UserError(f"{name}: {error.problem}", error.advice) from error
        hidden = next((c for unit in found.characters for c in unit if not (c.isprintable() or c in JOINERS)), None)
        if hidden is not None:
            raise UserError(f"the charset {path} has U+{ord(hidden):04X}, which is invisible", "Remove it")
        return found

    @classmethod
    def from_text(cls, text: str) -> Charset:
        """Return the charset of a store, a run or a model file; without an order it is logical."""
        return cls._parsed(text, "logical")

    @classmethod
    def _parsed(cls, text: str, default_order: ReadingOrder | None = None) -> Charset:
        # Not splitlines, which splits at other characters than line feeds, too.
        first, *lines = re.split(r"\r\n|\n|\r", text)
        head = _HEAD.fullmatch(first)
        if head is None:
            return cls("".join([first, *lines]), order=default_order)
        units = tuple(line for line in lines if line)
        kind, order, form = cast(tuple[Units, ReadingOrder | None, UnicodeForm | None], head.groups())
        characters = "".join(units) if kind == "codepoint" else units
        return cls(characters, kind, order or default_order, form or "nfkc")

    @property
    def text(self) -> str:
        """The charset as text, for stores, runs, model files and charset files."""
        if isinstance(self.characters, str) and self.order == "logical" and self.unicode == "nfkc":
            return self.characters
        head = f"# units: {self.units}, order: {self.order}"
        if self.unicode != "nfkc":
            head += f", unicode: {self.unicode}"
        return "\n".join([head, *self.characters]) + "\n"

    @cached_property
    def runs_right_to_left(self) -> bool:
        """Whether it has right-to-left letters."""
        return any(map(reading_order.runs_right_to_left, self.characters))

    def emitted_in(self, order: ReadingOrder | None) -> Charset:
        """Return the same units with the same ids, emitted in an order; None: in the default one."""
        return self if order == self.order else replace(self, order=order)

    @cached_property
    def as_seen(self) -> Charset:
        """The same units, with labels emitted in visual order."""
        return self.emitted_in("visual") if self.runs_right_to_left else self

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
        """Number of classes of a decoder: the end and every unit."""
        return len(self.characters) + 1

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return {unit: index + 1 for index, unit in enumerate(self.characters)}

    def with_more(self, units: Iterable[str]) -> Charset:
        """Return a charset with these units as well, sorted."""
        both = sorted({*self.characters, *units})
        return replace(self, characters=tuple(both) if self.units == "grapheme" else "".join(both))

    def same_units_as(self, other: Charset) -> bool:
        """Return whether both have the same units with the same ids; the order of labels may differ."""
        return (self.characters, self.units) == (other.characters, other.units)

    def split(self, label: str) -> Sequence[str]:
        """Return the units of ``label`` in logical order."""
        return split(label, self.units)

    def length(self, label: str) -> int:
        """Return the number of units of ``label``."""
        return len(self.split(label))

    def emitted(self, label: str) -> Sequence[str]:
        """Return the units of ``label`` in the order in which a decoder emits them."""
        if self.order == "logical" or not reading_order.runs_right_to_left(label):
            return self.split(label)
        moved, _ = reading_order.seen(clusters(label))
        return moved if self.units == "grapheme" else "".join(moved)

    def missing(self, label: str) -> str:
        """Return the units of ``label`` that this charset lacks, each once, in order."""
        return "".join(dict.fromkeys(unit for unit in self.split(label) if unit not in self._id_of))

    def encode(self, label: str) -> NDArray[np.int64]:
        """Return the ids of ``label``'s units, without beginning and end, shape (units,), in the charset's order.

        Raises:
            UserError: a unit is not in the charset.
        """
        units = self.emitted(label)
        try:
            return np.fromiter((self._id_of[unit] for unit in units), np.int64, len(units))
        except KeyError as error:
            raise UserError(
                f"label {label!r} has {self.missing(label) or error.args[0]!r}, which the charset lacks",
                "Choose a charset that covers the labels (--charset)",
            ) from None

    def decode(self, ids: NDArray[np.int64]) -> str:
        """Return the text of a row of ids, shape (length,), up to the first end."""
        return self.decode_with_places(ids)[0]

    def decode_with_places(self, ids: NDArray[np.int64]) -> tuple[str, list[int]]:
        """Return the text of a row of ids, shape (length,), up to the first end, and the index of each unit's id."""
        units: list[str] = []
        places: list[int] = []
        for place, index in enumerate(ids.tolist()):
            if index == self.end:
                break
            if index <= len(self.characters):
                units.append(self.characters[index - 1])
                places.append(place)
        text = "".join(units)
        if self.order == "logical" or not reading_order.runs_right_to_left(text):
            return text, places
        together = units if self.units == "grapheme" else clusters(text)
        moved, order = reading_order.written(together)
        # Units of one cluster keep their order among themselves.
        sizes = np.array([1 if self.units == "grapheme" else len(cluster) for cluster in together])
        firsts = np.cumsum(sizes) - sizes
        return "".join(moved), [places[firsts[place] + part] for place in order for part in range(sizes[place])]

    @cached_property
    def one_case(self) -> LetterCase | None:
        """The case of the charset's letters; None if it has both, or no cased letters."""
        lower, upper = any(c.islower() for c in self.characters), any(c.isupper() for c in self.characters)
        if lower == upper:
            return None
        return "lower" if lower else "upper"

    def fold_case(self, text: str) -> str:
        """Return ``text`` in the charset's case if it has only one, as is usual in the field; else unchanged."""
        return fold_case(text, self.one_case)

    def project(self, text: str) -> str:
        """Map ``text`` to this charset as the field's evaluation does.

        A single-case charset folds case; then every unit outside the charset is removed.
        """
        return "".join(unit for unit in self.split(self.fold_case(text)) if unit in self._id_of)


def fold_case(text: str, case: LetterCase | None) -> str:
    """Return ``text`` in lower or upper case; unchanged for None."""
    return text.lower() if case == "lower" else text.upper() if case == "upper" else text


def names() -> list[str]:
    """Return the names of all charsets of languages."""
    return sorted(path.stem for path in SCRIPTS.glob("*.txt"))


def has_marks(characters: Iterable[str]) -> bool:
    """Return whether some characters are combining marks."""
    return any(map(is_mark, characters))


def clusters_within(characters: str, found: Iterable[str]) -> tuple[str, ...]:
    """Return the code points that are clusters on their own, and the clusters of ``found`` that they can spell."""
    allowed = set(characters)
    alone = {character for character in allowed if not is_mark(character) and character not in JOINERS}
    return tuple(sorted(alone | {cluster for cluster in found if set(cluster) <= allowed}))
