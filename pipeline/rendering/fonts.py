"""Fonts for rendering, and detection of the words that a font can draw.

A character is looked up in the font's table and then drawn: some listed glyphs are blank, the font's "missing" box, or
another letter. Words whose letters combine also need the font's shaping rules.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from importlib.metadata import entry_points
from itertools import combinations
from pathlib import Path

import numpy as np
import uharfbuzz
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dptr.cache.errors import UserError
from dptr.cache.remote import home_folder
from dptr.cache.text.reading_order import may_stand_in_a_column
from dptr.cache.text.units import JOINERS
from dptr.pipeline.rendering.shaping import has_rules, needs_shaping, table_of

_SUFFIXES = (".ttf", ".otf", ".ttc")
_PROBE_SIZE = 24
_NO_CHARACTER = "\uffff"
#: Bits of ulCodePageRange1 in the table OS/2, by language.
_HAN_LANGUAGES = {"ja": 1 << 17, "zh": 1 << 18, "ko": 1 << 19, "zh-hant": 1 << 20}
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")
# These draw pictures or boxes instead of letters.
_NOT_FOR_WORDS = (
    "symbol",
    "dingbat",
    "emoji",
    "icon",
    "lastresort",
    "fallback",
    "braille",
    "barcode",
    "blank",
    "d050000l",
    "initials",
    "keyboard",
)


class Font:
    """One face of a font file; picklable, because loaded objects are cached outside it.

    Attributes:
        index: which of the faces of a collection (.ttc). language: whose forms of the characters are drawn, or None.
    """

    def __init__(self, path: Path, index: int = 0, language: str | None = None) -> None:
        self.path = path
        self.index = index
        self.language = language
        self._has: dict[str, bool] = {}

    def __repr__(self) -> str:
        return f"Font({self.path.name}" + (f", {self.index})" if self.index else ")")

    def at(self, size: int, shaped: bool = True) -> ImageFont.FreeTypeFont:
        """Return the font at ``size`` pixels per em.

        ``shaped`` joins and reorders letters as many scripts need (where Pillow has Raqm); ASCII is quicker without.
        """
        return _load(str(self.path), self.index, size, shaped)

    @cached_property
    def names(self) -> tuple[str, str]:
        """Family and style as the font gives them; the file's name where it gives none."""
        family, style = self.at(_PROBE_SIZE).getname()
        return family or self.path.stem, style or ""

    @cached_property
    def _missing_box(self) -> bytes:
        return _ink(self, _NO_CHARACTER)

    @cached_property
    def family(self) -> str:
        """The family of the file's first face: those of a collection differ by region, weight or width."""
        return Font(self.path).names[0] if self.index else self.names[0]

    @cached_property
    def han_languages(self) -> int:
        """Languages with Han characters that the font says it is made for, as bits of ``_HAN_LANGUAGES``."""
        table = table_of(str(self.path), self.index).face.reference_table("OS/2").data
        return struct.unpack_from(">I", table, 78)[0] & sum(_HAN_LANGUAGES.values()) if len(table) >= 82 else 0

    def covers(self, word: str, column: bool = False) -> bool:
        """Return whether the font draws ``word`` as it is read, or draws it as a column; a space always can be."""
        if column and not may_stand_in_a_column(word):
            return False
        shaped = needs_shaping(word)
        if not all(self._covers(character) for character in word if not (shaped and character in JOINERS)):
            return False
        return not (shaped or column) or has_rules(table_of(str(self.path), self.index), word, column)

    def _covers(self, character: str) -> bool:
        known = self._has.get(character)
        if known is None:
            known = character == " " or self._draws(character)
            self._has[character] = known
        return known

    def _draws(self, character: str) -> bool:
        if character.isspace() or not table_of(str(self.path), self.index).get_nominal_glyph(ord(character)):
            return False
        try:
            ink = _ink(self, character)
            seen = any(ink) and ink != self._missing_box
            return seen and shows_its_letter(self.at(_PROBE_SIZE, shaped=False), character)
        except OSError:
            # The glyph is damaged.
            return False


class FontCollection:
    """Fonts by family, so that a family with twenty styles is not drawn twenty times as often as one with one."""

    def __init__(self, fonts: Iterable[Font]) -> None:
        families: dict[str, dict[tuple[str, str], Font]] = {}
        for font in fonts:
            # The same font is often there twice, as .ttf and as .otf.
            families.setdefault(font.family, {}).setdefault(font.names, font)
        self._families = [list(styles.values()) for _, styles in sorted(families.items())]

    @property
    def fonts(self) -> list[Font]:
        """All fonts, family by family."""
        return [font for family in self._families for font in family]

    def covers(self, word: str) -> bool:
        """Return whether at least one font can draw ``word``."""
        return any(font.covers(word) for font in self.fonts)

    def choose(self, word: str, rng: np.random.Generator) -> Font:
        """Draw a family, then a style of it, among those that can draw ``word``.

        Raises:
            UserError: no font can.
        """
        for family in rng.permutation(len(self._families)):
            styles = self._families[int(family)]
            for style in rng.permutation(len(styles)):
                font = styles[int(style)]
                if font.covers(word):
                    return font
        raise UserError(f"no font has all characters of {word!r}", "Name a folder with fonts that do (--fonts)")


def find_fonts(folder: Path | None = None, language: str | None = None) -> FontCollection:
    """Return the fonts in ``folder``, or else those of installed ``font-*`` packages and of the system.

    With ``language`` (as zh-Hans, zh-Hant, ja, ko, sr), characters are drawn in its forms, and fonts that are made for
    other languages with Han characters are left out.

    Raises:
        UserError: no usable font was found, or ``language`` is none.
    """
    if folder is not None and not folder.exists():
        raise UserError(f"there is no folder {folder}", "Name a folder with .ttf or .otf files (--fonts)")
    paths = _font_files(folder) if folder is not None else [*_packaged(), *_system()]
    pages = _han_language(language)
    found = (font for path in paths for font in _faces(path, language))
    fonts = FontCollection(font for font in found if not (pages and font.han_languages) or font.han_languages & pages)
    if not fonts.fonts:
        where = f"in {folder}" if folder is not None else "on this machine"
        raise UserError(f"no font found {where}", "Run `pip install 'dptr[demo]'`, or name a folder with --fonts")
    return fonts


def _han_language(language: str | None) -> int:
    """Return the bit of a language with Han characters, or 0."""
    if language is None:
        return 0
    if not _LANGUAGE.fullmatch(language):
        raise UserError(f"no language is called {language!r}", "Give a tag such as zh-Hans, zh-Hant, ja, ko or hi")
    first, *rest = language.lower().split("-")
    traditional = first == "zh" and not {"hant", "tw", "hk", "mo"}.isdisjoint(rest)
    return _HAN_LANGUAGES.get("zh-hant" if traditional else first, 0)


def packaged_fonts() -> FontCollection:
    """Return the fonts of installed ``font-*`` packages, the same on every machine with the ``demo`` extra.

    Raises:
        UserError: there are none.
    """
    fonts = FontCollection(font for path in _packaged() for font in _faces(path, None))
    if not fonts.fonts:
        raise UserError("no package of fonts is installed", "Run: pip install 'dptr[demo]'")
    return fonts


def _packaged() -> Iterator[Path]:
    """Fonts that Python packages register, as the ``demo`` extra's do."""
    for group in ("fonts_ttf", "fonts_otf"):
        for entry in sorted(entry_points(group=group)):
            yield from sorted(Path(path) for path in entry.load().values())


def _system() -> Iterator[Path]:
    home = home_folder() or Path("/")
    folders = [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".fonts", home / ".local/share/fonts"]
    if sys.platform == "darwin":
        folders = [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    elif sys.platform == "win32":
        windows, local = os.environ.get("WINDIR", r"C:\Windows"), os.environ.get("LOCALAPPDATA", str(home))
        folders = [Path(windows) / "Fonts", Path(local) / "Microsoft/Windows/Fonts"]
    for folder in folders:
        yield from (path for path in _font_files(folder) if not _names_pictures(path.stem))


def _font_files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)


def _names_pictures(name: str) -> bool:
    return any(word in name.lower() for word in _NOT_FOR_WORDS) or name.lower().endswith("dings")


def _faces(path: Path, language: str | None) -> Iterator[Font]:
    """Yield the faces of a font file; none of one that is no font, or of bitmaps only."""
    try:
        count = table_of(str(path), 0).face.count if path.suffix.lower() == ".ttc" else 1
        for font in (Font(path, index, language) for index in range(count)):
            if font.names:
                yield font
    except (OSError, uharfbuzz.HarfBuzzError):
        return


@lru_cache(maxsize=2048)
def _load(path: str, index: int, size: int, shaped: bool) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, index, layout_engine=None if shaped else ImageFont.Layout.BASIC)


def _ink(font: Font, character: str) -> bytes:
    # Unshaped, one character is one glyph; shaping would compose a missing one from others.
    return bytes(font.at(_PROBE_SIZE, shaped=False).getmask(character))


#: Least share of the plain letter's ink that lies within a pixel of the marked one's: i loses its dot, A gets lower.
#: Looked at in 2,500 faces: of those that draw the letter, coarse pixel fonts that squeeze it below its mark miss it.
_LEAST_SHARED = 0.87
#: How far the plain letter may be moved to the side to meet the marked one, in ems.
_FURTHEST = 0.25


def plainer_forms(character: str) -> list[str]:
    """Return the letters that ``character`` has more marks than, the plain one first: a, â and ạ of ậ; none of a.

    Nor of a Hangul syllable, which is made of letters, and of Arabic letters: yeh with hamza above is drawn without its
    dots, as it should be.
    """
    letter, *marks = list(unicodedata.normalize("NFD", character))
    if unicodedata.bidirectional(letter) != "L" or any(unicodedata.category(mark) != "Mn" for mark in marks):
        return []
    return list(_single(letter, marks))


def shows_its_letter(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """Return whether ``font`` draws ``character`` as its plain letter and something besides.

    Fonts of before Unicode draw Cyrillic or Tamil letters in the places of accented Latin ones, unfinished ones the
    plain letter or the mark alone: labels that their pictures do not show. No table of a font has that, so it is drawn.
    A character without a mark shows its letter. Of what the font lacks it draws its box, which is none of them.
    """
    plainer = plainer_forms(character)
    if not plainer:
        return True
    drawn = _drawn(font, character)
    forms = [_drawn(font, form) for form in plainer]
    if any(form == drawn for form in forms):
        return False
    # Thin strokes of the same letter may lie a pixel apart.
    return _shared(_drawn_ink(forms[0]), _drawn_ink(drawn.filter(ImageFilter.MaxFilter(3)))) >= _LEAST_SHARED


def _single(letter: str, marks: list[str]) -> Iterator[str]:
    """Yield what single characters a letter makes with some, but not all, of its marks."""
    for count in range(len(marks)):
        for some in combinations(marks, count):
            form = unicodedata.normalize("NFC", letter + "".join(some))
            if len(form) == 1:
                yield form


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """Draw a character on a canvas of three ems by three, from the same point of the base line."""
    side = 3 * round(font.size)
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).text((side // 3, 2 * side // 3), character, 255, font, anchor="ls")
    return canvas


def _drawn_ink(canvas: Image.Image) -> NDArray[np.int64]:
    """Return the ink, 0 to 255, of each pixel."""
    return np.asarray(canvas).astype(np.int64)


def _shared(plain: NDArray[np.int64], marked: NDArray[np.int64]) -> float:
    """Return the largest share of ``plain``'s ink that is ``marked``'s too, over moves to the side; 0 of no ink."""
    furthest = int(len(plain) / 3 * _FURTHEST)
    shared = (np.minimum(np.roll(plain, move, 1), marked).sum() for move in range(-furthest, furthest + 1))
    return float(max(shared) / max(1, plain.sum()))
