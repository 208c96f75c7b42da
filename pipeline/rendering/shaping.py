"""Shaping: words whose letters are joined, reordered or stacked, and fonts with the rules for it.

HarfBuzz, which Pillow's Raqm layout uses, too, gives a font's glyphs of a word. A font is rejected for a word if it
lacks a glyph, draws a dotted circle, leaves Arabic letters unjoined, draws a conjunct's virama, or puts marks beside
their letters.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache
from itertools import pairwise

import uharfbuzz
from fontTools import unicodedata as scripts
from PIL import features

from dptr.cache.errors import UserError
from dptr.cache.text.reading_order import turns_in_columns

#: Scripts whose letters may be set apart.
_APART = {"Latn", "Grek", "Cyrl", "Armn", "Geor", "Hani", "Hira", "Kana", "Hang", "Bopo", "Zyyy", "Zinh"}
#: Scripts whose marks and joins HarfBuzz places if a font has no rules for them.
_WITHOUT_RULES = _APART | {"Hebr", "Arab"}
#: Scripts where a virama between two letters is seen only if a font lacks their conjunct.
_CONJUNCTS = {"Deva", "Beng", "Gujr", "Orya", "Telu", "Knda"}
_VIRAMA = 9  # the canonical combining class of viramas
#: How far beside its letter a mark may lean, in ems: those of slanted fonts do.
_SLACK = 0.2
_DOTTED_CIRCLE = "\u25cc"


def needs_shaping(word: str) -> bool:
    """Return whether ``word`` runs from right to left, or has marks or letters that combine."""
    return not word.isascii() and any(
        unicodedata.category(character) in ("Mn", "Mc", "Me")
        or unicodedata.bidirectional(character) in ("R", "AL")
        or "\u1100" <= character <= "\u11ff"  # Hangul by letters instead of syllables
        for character in word
    )


def may_stand_apart(word: str) -> bool:
    """Return whether the letters of ``word`` may be drawn one by one, with space between them."""
    if word.isascii():
        return True
    return not needs_shaping(word) and all(scripts.script(character) in _APART for character in word)


def require_raqm(why: str) -> None:
    """Raise an error where Pillow cannot shape.

    Raises:
        UserError: Pillow was built without Raqm, or does not find it.
    """
    if not features.check("raqm"):
        raise UserError(
            f"Pillow lacks Raqm here, which {why} needs",
            "Install Pillow's own wheel (pip install --force-reinstall pillow) or libraqm (apt-get install libraqm0)",
        )


@cache
def table_of(path: str, index: int) -> uharfbuzz.Font:
    """Return a font file, mapped rather than read."""
    return uharfbuzz.Font(uharfbuzz.Face(uharfbuzz.Blob.from_file_path(path), index))


def has_rules(font: uharfbuzz.Font, word: str, column: bool = False) -> bool:
    """Return whether ``font`` joins, orders and stacks the letters of ``word``, and turns its signs in a column.

    The characters are taken to be there.
    """
    if not all(_knows(font.face, script) for script in map(scripts.script, word) if script not in _WITHOUT_RULES):
        return False
    shaped = _shape(font, word, column)
    glyphs = [(info.cluster, info.codepoint) for info in shaped.glyph_infos]
    drawn = [glyph for _, glyph in glyphs]
    if 0 in drawn or (_DOTTED_CIRCLE not in word and _glyph(font, _DOTTED_CIRCLE) in drawn):
        return False
    if any(drawn.count(_glyph(font, virama) or -1) > free for virama, free in _viramas(word).items()):
        return False
    changing = _turning(word) if column else _joined_forwards(word)
    if any((place, _glyph(font, word[place])) in glyphs for place in changing):
        return False
    return column or _marks_sit(font, word, shaped)


def _shape(font: uharfbuzz.Font, word: str, column: bool) -> uharfbuzz.Buffer:
    buffer = uharfbuzz.Buffer()
    buffer.add_str(word)
    buffer.guess_segment_properties()
    if column:
        buffer.direction = "ttb"
    uharfbuzz.shape(font, buffer)
    return buffer


def _marks_sit(font: uharfbuzz.Font, word: str, shaped: uharfbuzz.Buffer) -> bool:
    """Return whether marks that take no room of their own are above or below their letter, not beside it."""
    places = sorted({info.cluster for info in shaped.glyph_infos})
    ends = dict(pairwise([*places, len(word)]))
    spans: dict[int, list[tuple[int, int]]] = {}
    x = 0
    for info, position in zip(shaped.glyph_infos, shaped.glyph_positions, strict=True):
        ink = font.get_glyph_extents(info.codepoint)
        if ink is not None and ink.width:
            left = x + position.x_offset + ink.x_bearing
            spans.setdefault(info.cluster, []).append((left, left + ink.width))
        x += position.x_advance
    slack = _SLACK * font.face.upem
    for place, found in spans.items():
        if all(unicodedata.category(mark) == "Mn" for mark in word[place + 1 : ends[place]]):
            left, right = max(found, key=lambda span: span[1] - span[0])
            if any(other[1] <= left - slack or other[0] >= right + slack for other in found):
                return False
    return True


def _viramas(word: str) -> dict[str, int]:
    """Return the viramas of conjuncts in ``word``, and how often each stands free, before no letter."""
    places = [place for place, character in enumerate(word) if unicodedata.combining(character) == _VIRAMA]
    free = Counter(word[place] for place in places if not word[place + 1 : place + 2].isalpha())
    return {word[place]: free[word[place]] for place in places if scripts.script(word[place]) in _CONJUNCTS}


def _joined_forwards(word: str) -> list[int]:
    """Return the places of Arabic letters that are joined with the next one, marks between them aside."""
    letters = [place for place, character in enumerate(word) if unicodedata.category(character) != "Mn"]
    return [
        place
        for place, following in pairwise(letters)
        if word[place] in _JOINING_FORWARDS and word[following] in _JOINING_BACKWARDS
    ]


def _turning(word: str) -> list[int]:
    return [place for place, character in enumerate(word) if turns_in_columns(character)]


def _glyph(font: uharfbuzz.Font, character: str) -> int | None:
    return font.get_nominal_glyph(ord(character)) or None


@cache
def _knows(face: uharfbuzz.Face, script: str) -> bool:
    tags = set(scripts.ot_tags_from_script(script))
    tables = ("GSUB", "GPOS")
    return "morx" in face.table_tags or any(tags & set(face.get_table_script_tags(table)) for table in tables)


def _joining(form: str) -> frozenset[str]:
    """Return the letters that Unicode's compatibility characters list this form of."""
    ranges = (range(0xFB50, 0xFE00), range(0xFE70, 0xFF00))
    parts = [unicodedata.decomposition(chr(point)).split() for points in ranges for point in points]
    return frozenset(chr(int(one[1], 16)) for one in parts if len(one) == 2 and one[0] == f"<{form}>")


_JOINING_FORWARDS, _JOINING_BACKWARDS = _joining("initial"), _joining("final")
