"""Charsets by name and as text: the field's three, those of languages, and files; ``94+ru`` joins two.

Those of languages are in ``charsets/``; ``examples/charsets/make_charsets.py`` makes them from data of Unicode and
CLDR. ``ar``, ``hi`` and ``th`` have combining marks: their default units are the grapheme clusters of the corpus.

Charset files, stores, runs and model files hold a charset as text. Most are the characters on one line. Otherwise a
first line gives the units, the order in which a decoder emits them and the Unicode normal form of labels, and each
further line is a unit::

    # units: grapheme, order: visual, unicode: nfc

A charset on one line cannot start like this, as it would contain characters twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, cast, get_args

from dptr.cache.choices import ReadingOrder, UnicodeForm, Units
from dptr.cache.errors import UserError
from dptr.cache.text.units import JOINERS, is_mark

_FORMS = "|".join(get_args(UnicodeForm))
_HEAD = re.compile(rf"# units: (codepoint|grapheme)(?:, order: (logical|visual))?(?:, unicode: ({_FORMS}))?")


class Described(NamedTuple):
    """A parsed charset; attributes as of :class:`dptr.cache.text.charset.Charset`."""

    characters: str | tuple[str, ...]
    units: Units = "codepoint"
    order: ReadingOrder | None = None
    unicode: UnicodeForm = "nfkc"


def parse(text: str) -> Described:
    """Parse a charset's text; :class:`Charset` validates the result."""
    # Not splitlines, which splits at other characters than line feeds, too.
    first, *lines = re.split(r"\r\n|\n|\r", text)
    head = _HEAD.fullmatch(first)
    if head is None:
        return Described("".join([first, *lines]))
    units = tuple(line for line in lines if line)
    kind, order, form = cast(tuple[Units, ReadingOrder | None, UnicodeForm | None], head.groups())
    return Described("".join(units) if kind == "codepoint" else units, kind, order, form or "nfkc")


def written(charset: Described) -> str:
    """Return a charset as text, the inverse of :func:`parse`; without an order it is logical."""
    if isinstance(charset.characters, str) and charset.order in (None, "logical") and charset.unicode == "nfkc":
        return charset.characters
    head = f"# units: {charset.units}, order: {charset.order or 'logical'}"
    if charset.unicode != "nfkc":
        head += f", unicode: {charset.unicode}"
    return "\n".join([head, *charset.characters]) + "\n"


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


def names() -> list[str]:
    """Return the names of all charsets of languages."""
    return sorted(path.stem for path in SCRIPTS.glob("*.txt"))


def named(name: str) -> Described:
    """Return the charset of a name, of a UTF-8 file, or of several joined by ``+``, as in ``94+ru`` or ``36+space``."""
    parts = name.split("+")
    if Path(name).is_file() or "" in parts or len(parts) == 1:
        return _one(name)
    return _joined([_one(part) for part in parts])


def has_marks(characters: Iterable[str]) -> bool:
    """Return whether some characters are combining marks."""
    return any(map(is_mark, characters))


def clusters_within(characters: str, found: Iterable[str]) -> tuple[str, ...]:
    """Return the code points that are clusters on their own, and the clusters of ``found`` that they can spell."""
    allowed = set(characters)
    alone = {character for character in allowed if not is_mark(character) and character not in JOINERS}
    return tuple(sorted(alone | {cluster for cluster in found if set(cluster) <= allowed}))


def _joined(charsets: list[Described]) -> Described:
    """Return the distinct units of all, in order; grapheme clusters if one of them has clusters."""
    characters = tuple(dict.fromkeys(unit for charset in charsets for unit in charset.characters))
    if any(charset.units == "grapheme" for charset in charsets):
        return Described(characters, "grapheme")
    return Described("".join(characters))


def _one(name: str) -> Described:
    if name in NAMED_CHARACTERS:
        return Described(NAMED_CHARACTERS[name])
    if name in names():
        return _script(name)
    path = Path(name)
    if not path.is_file():
        known = ", ".join([*NAMED_CHARACTERS, *names()])
        raise UserError(f"no charset called {name!r}", f"Use {known}, or a UTF-8 file with the characters")
    return _file(path)


@lru_cache
def _script(name: str) -> Described:
    return _file(SCRIPTS / f"{name}.txt")


def _file(path: Path) -> Described:
    try:
        # Some editors write a byte-order mark, which is no character of the charset.
        found = parse(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"the charset {path} is not UTF-8 (byte {error.start + 1})", "Save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"the charset {path} cannot be read ({error.strerror})", "Check its permissions") from error
    hidden = next((c for unit in found.characters for c in unit if not (c.isprintable() or c in JOINERS)), None)
    if hidden is not None:
        raise UserError(f"the charset {path} has U+{ord(hidden):04X}, which is invisible", "Remove it")
    return found
