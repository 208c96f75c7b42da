"""A charset as text: what a file of characters holds, and what stores, runs and model files keep.

Most are simply the characters in a row; line breaks are none of them. Where that would not say everything, the first
line says what the units are, and maybe in which order a decoder emits them and which Unicode normal form labels are
in, and then comes a unit a line::

    # units: grapheme, order: visual, unicode: nfc

No charset of the plain form begins so, as it would name characters twice.
"""

from __future__ import annotations

import re
from typing import NamedTuple, cast, get_args

from dptr.cache.choices import ReadingOrder, UnicodeForm, Units

_FORMS = "|".join(get_args(UnicodeForm))
_HEAD = re.compile(rf"# units: (codepoint|grapheme)(?:, order: (logical|visual))?(?:, unicode: ({_FORMS}))?")


class Described(NamedTuple):
    """What a charset is; attributes as of :class:`dptr.cache.text.charset.Charset`."""

    characters: str | tuple[str, ...]
    units: Units = "codepoint"
    order: ReadingOrder | None = None
    unicode: UnicodeForm = "nfkc"


def parse(text: str) -> Described:
    """Return what ``text`` says of a charset; whether it can be one is for the charset to judge."""
    # Not splitlines, which parts at more than the ends of lines.
    first, *lines = re.split(r"\r\n|\n|\r", text)
    head = _HEAD.fullmatch(first)
    if head is None:
        return Described("".join([first, *lines]))
    units = tuple(line for line in lines if line)
    kind, order, form = cast(tuple[Units, ReadingOrder | None, UnicodeForm | None], head.groups())
    return Described("".join(units) if kind == "codepoint" else units, kind, order, form or "nfkc")


def written(charset: Described) -> str:
    """Return a charset as text, from which :func:`parse` makes the same; without an order it is the logical one."""
    if isinstance(charset.characters, str) and charset.order in (None, "logical") and charset.unicode == "nfkc":
        return charset.characters
    head = f"# units: {charset.units}, order: {charset.order or 'logical'}"
    if charset.unicode != "nfkc":
        head += f", unicode: {charset.unicode}"
    return "\n".join([head, *charset.characters]) + "\n"
