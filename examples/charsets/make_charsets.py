"""Make the charsets of cache/text/charsets/ from CLDR's exemplar characters and the national character sets.

npm pack cldr-misc-full@48.2.0 cldr-core@48.2.0
for file in cldr-*.tgz; do mkdir ${file%.tgz} && tar xzf $file -C ${file%.tgz}; done
python examples/charsets/make_charsets.py cldr-misc-full-48.2.0/package/main cldr-core-48.2.0/package -o
cache/text/charsets

Each charset starts with the field's 94 characters: digits, Latin letters and ASCII punctuation. Then follow, by code
point, CLDR's letters of the language in both cases, its digits, punctuation and common currency signs in NFKC, letters
also in NFC. Han characters and hangul syllables are those of the national character set, from Python's codecs, because
CLDR lists too few of the former and all 11,172 of the latter.
"""

import argparse
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import regex

from dptr.cache.errors import run_script
from dptr.cache.text.charset import NAMED_CHARACTERS
from dptr.cache.text.units import JOINERS, is_mark

#: Name -> CLDR's locale, and the codec of the national character set with its first bytes.
SOURCES: dict[str, tuple[str, tuple[str, int, int] | None]] = {
    "ar": ("ar", None),
    "de": ("de", None),
    "el": ("el", None),
    "fr": ("fr", None),
    "he": ("he", None),
    "hi": ("hi", None),
    # JIS X 0208, KS X 1001, GB 2312 and the two planes of Big5; without rows of other scripts and of symbols.
    "ja": ("ja", ("euc_jp", 0xB0, 0xF4)),
    "ko": ("ko", ("euc_kr", 0xB0, 0xC8)),
    "ru": ("ru", None),
    "th": ("th", None),
    "vi": ("vi", None),
    "zh-hans": ("zh", ("gb2312", 0xB0, 0xF7)),
    "zh-hant": ("zh-Hant", ("big5", 0xA4, 0xF9)),
}
_LATIN = "latin"
_OF_CODECS = regex.compile(r"[\p{Script=Han}\p{Script=Hangul}]")
_LINE = 64


def members(pattern: str) -> set[str]:
    """Return the code points that a UnicodeSet of CLDR's JSON names; clusters in braces count as theirs."""
    found: set[str] = set()
    tokens = re.findall(r"\\u[0-9A-Fa-f]{4}|\\.|.", pattern.strip()[1:-1], re.DOTALL)
    characters = [
        chr(int(t[2:], 16)) if t.startswith("\\u") else t[1:] if t.startswith("\\") else t
        for t in tokens
        if t not in " {}"
    ]
    plain = [t == "-" for t in tokens if t not in " {}"]
    for place, character in enumerate(characters):
        if plain[place] and 0 < place < len(characters) - 1:
            found |= set(map(chr, range(ord(characters[place - 1]), ord(characters[place + 1]))))
        else:
            found.add(character)
    return found


def exemplars(main: Path, locale: str) -> dict[str, set[str]]:
    """Return CLDR's sets of characters of a locale by name."""
    told = json.loads((main / locale / "characters.json").read_text(encoding="utf-8"))["main"][locale]["characters"]
    names = ("exemplarCharacters", "auxiliary", "numbers", "punctuation")
    # CLDR's rules for lenient parsing name the currency signs that are met most, but for the euro.
    currencies = {sign for sign in told["lenient-scope-general"] if unicodedata.category(sign) == "Sc"}
    return {**{name: members(told.get(name, "[]")) for name in names}, "currencies": {*currencies, "€"}}


def of_codec(codec: str, first: int, last: int) -> set[str]:
    """Return the Han characters and hangul syllables of a set of two bytes, between two first bytes."""
    found = set()
    for lead in range(first, last + 1):
        for trail in range(0x40, 0xFF):
            try:
                character = bytes((lead, trail)).decode(codec)
            except UnicodeDecodeError:
                continue
            if len(character) == 1 and _OF_CODECS.match(character):
                found.add(character)
    return found


def usable(characters: set[str]) -> Iterator[str]:
    """Yield the forms of characters in labels: normalised, in both cases, printable."""
    for character in characters:
        is_letter = unicodedata.category(character)[0] in "LM"
        forms = unicodedata.normalize("NFKC", character)
        if is_letter:
            forms += unicodedata.normalize("NFC", character)
        for form in forms:
            # NFKC makes a space and a mark of some punctuation, which no label keeps; ß has no single capital.
            if form in JOINERS or (form.isprintable() and not form.isspace() and (is_letter or not is_mark(form))):
                yield form
                yield from (case for case in (form.upper(), form.lower()) if len(case) == 1)


def charset(main: Path, name: str) -> str:
    """Return a charset's characters in order."""
    locale, codec = SOURCES[name]
    sets = exemplars(main, locale)
    characters = sets["exemplarCharacters"] | sets["numbers"] | sets["punctuation"] | sets["currencies"]
    if codec is not None:
        characters = {c for c in characters if not _OF_CODECS.match(c)} | of_codec(*codec)
    if any(map(is_mark, sets["exemplarCharacters"])):
        characters |= sets["auxiliary"] & set(JOINERS)
    return ordered(set(usable(characters)))


def latin(main: Path, core: Path) -> str:
    """Return the Latin letters of all locales that CLDR covers as well as it does, with their punctuation."""
    levels = json.loads((core / "coverageLevels.json").read_text(encoding="utf-8"))["effectiveCoverageLevels"]
    characters: set[str] = set()
    for locale in sorted(name for name, level in levels.items() if level == "modern" and (main / name).is_dir()):
        sets = exemplars(main, locale)
        letters = {c for c in sets["exemplarCharacters"] if unicodedata.category(c).startswith("L")}
        if letters and all(regex.match(r"[\p{Script=Latin}\p{Script=Common}]", c) for c in letters):
            characters |= letters | sets["punctuation"] | sets["currencies"]
    return ordered(set(usable(characters)))


def ordered(characters: set[str]) -> str:
    """Return the field's 94 characters, then the others by code point."""
    first = NAMED_CHARACTERS["94"]
    return first + "".join(sorted(characters - set(first)))


def main() -> None:
    """Write a file for each name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("main", type=Path, help="folder main of cldr-misc-full")
    parser.add_argument("core", type=Path, help="folder of cldr-core")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of charsets; by default all")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only or [*SOURCES, _LATIN]:
        characters = latin(options.main, options.core) if name == _LATIN else charset(options.main, name)
        lines = [characters[start : start + _LINE] for start in range(0, len(characters), _LINE)]
        (options.out / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
        print(f"{name}: {len(characters):,} characters")


if __name__ == "__main__":
    run_script(main)
