"""Fonts to render words with, and which words each of them can draw.

Whether a font has a character is found by drawing it: a character it lacks is drawn as the font's "missing"
box, one with an empty glyph as nothing. That needs no reader of font tables, and finds blank glyphs that tables list.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
from PIL import ImageFont

from dptr.cache.errors import UserError

_SUFFIXES = (".ttf", ".otf", ".ttc")
_PROBE_SIZE = 24
_NO_CHARACTER = "\uffff"
# These draw pictures, or boxes, in the place of letters.
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
    """One font file; picklable, because what is loaded is kept apart from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._has: dict[str, bool] = {}

    def __repr__(self) -> str:
        return f"Font({self.path.name})"

    def at(self, size: int, shaped: bool = True) -> ImageFont.FreeTypeFont:
        """Return the font at ``size`` pixels per em.

        ``shaped`` joins and reorders letters as many scripts need (where Pillow has Raqm); ASCII is quicker without.
        """
        return _load(str(self.path), size, shaped)

    @cached_property
    def names(self) -> tuple[str, str]:
        """Family and style as the font gives them; the file's name where it gives none."""
        family, style = self.at(_PROBE_SIZE).getname()
        return family or self.path.stem, style or ""

    @cached_property
    def _missing_box(self) -> bytes:
        return _ink(self, _NO_CHARACTER)

    def covers(self, word: str) -> bool:
        """Return whether every character of ``word`` can be drawn; a space always can."""
        return all(self._covers(character) for character in word)

    def _covers(self, character: str) -> bool:
        known = self._has.get(character)
        if known is None:
            ink = b"" if character.isspace() else _ink(self, character)
            known = character == " " or (any(ink) and ink != self._missing_box)
            self._has[character] = known
        return known


class FontCollection:
    """Fonts by family, so that a family with twenty styles is not drawn twenty times as often as one with one."""

    def __init__(self, fonts: Iterable[Font]) -> None:
        families: dict[str, dict[str, Font]] = {}
        for font in fonts:
            family, style = font.names
            # The same font is often there twice, as .ttf and as .otf.
            families.setdefault(family, {}).setdefault(style, font)
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


def find_fonts(folder: Path | None = None) -> FontCollection:
    """Return the fonts in ``folder``, or else those of installed ``font-*`` packages and of the system.

    Raises:
        UserError: no usable font was found.
    """
    if folder is not None and not folder.exists():
        raise UserError(f"there is no folder {folder}", "Name a folder with .ttf or .otf files (--fonts)")
    paths = _font_files(folder) if folder is not None else [*_packaged(), *_system()]
    fonts = FontCollection(font for font in map(Font, paths) if _is_usable(font))
    if not fonts.fonts:
        where = f"in {folder}" if folder is not None else "on this machine"
        raise UserError(f"no font found {where}", "Run `pip install 'dptr[demo]'`, or name a folder with --fonts")
    return fonts


def packaged_fonts() -> FontCollection:
    """Return the fonts of installed ``font-*`` packages, the same on every machine with the ``demo`` extra.

    Raises:
        UserError: there are none.
    """
    fonts = FontCollection(font for font in map(Font, _packaged()) if _is_usable(font))
    if not fonts.fonts:
        raise UserError("no package of fonts is installed", "Run: pip install 'dptr[demo]'")
    return fonts


def _packaged() -> Iterator[Path]:
    """Fonts that Python packages register, as the ``demo`` extra's do."""
    for group in ("fonts_ttf", "fonts_otf"):
        for entry in sorted(entry_points(group=group)):
            yield from sorted(Path(path) for path in entry.load().values())


def _system() -> Iterator[Path]:
    home = Path.home()
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


def _is_usable(font: Font) -> bool:
    try:
        return bool(font.names)
    except OSError:  # not a font, or one of bitmaps only
        return False


@lru_cache(maxsize=2048)
def _load(path: str, size: int, shaped: bool) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=None if shaped else ImageFont.Layout.BASIC)


def _ink(font: Font, character: str) -> bytes:
    # Unshaped, one character is one glyph; shaping would compose a missing one from others.
    return bytes(font.at(_PROBE_SIZE, shaped=False).getmask(character))
