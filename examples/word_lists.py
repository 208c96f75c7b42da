"""Write a clean word list for each language, from dictionaries that install as packages; frequent words first.

    pip install wordfreq jieba pythainlp
    apt-get install edict aspell-ar aspell-el aspell-hi hunspell-ko hunspell-vi wngerman
    python examples/word_lists.py zh ja ko ar hi th ru el vi de -o lists

Words have their usual spelling: if a dictionary has capitals and final letters, the words are the dictionary's and only
their order is wordfreq's. Other languages of wordfreq (uk, he, bn, ta, fa, fr, ...) use its words unchanged. A
Vietnamese list has about 6,600 syllables, which are separated by spaces in writing.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import shutil
import subprocess
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from fontTools import unicodedata as scripts

from dptr.cache.errors import UserError, run_script

#: The scripts that a language's words may hold, as ISO 15924 names them; Latin where it is not here.
SCRIPTS = {
    "zh": {"Hani"}, "ja": {"Hani", "Hira", "Kana"}, "ko": {"Hang"}, "ar": {"Arab"}, "fa": {"Arab"}, "ur": {"Arab"},
    "hi": {"Deva"}, "bn": {"Beng"}, "ta": {"Taml"}, "th": {"Thai"}, "el": {"Grek"}, "he": {"Hebr"}, "ru": {"Cyrl"},
    "uk": {"Cyrl"}, "bg": {"Cyrl"}, "mk": {"Cyrl"}, "sr": {"Cyrl"},
}  # fmt: skip
_FREQUENT = 400_000


def main() -> None:
    """Write one list a language and print the number of rejected words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("languages", nargs="+", metavar="LANGUAGE")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=60_000, help="words a list holds at most")
    parser.add_argument("--longest", type=int, default=12, help="characters a word may have")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for language in options.languages:
        words, rejected = word_list(language, options.limit, options.longest)
        (options.out / f"{language}.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.most_common())
        print(f"{language}: {len(words):,} words; rejected: {reasons or 'none'}")


def word_list(language: str, limit: int, longest: int) -> tuple[list[str], Counter[str]]:
    """Return at most ``limit`` distinct words, frequent ones first, and the number of rejected words by reason.

    Raises:
        UserError: the package that the words come from is not installed, or none is known.
    """
    rejected: Counter[str] = Counter()
    kept: dict[str, None] = {}
    for word in SOURCES.get(language, lambda: _frequent(language))():
        word = unicodedata.normalize("NFC", word.strip())
        reason = _why_not(word, SCRIPTS.get(language, {"Latn"}), longest) or ("twice" if word in kept else "")
        if not reason and len(kept) >= limit:
            reason = "rarer than the limit"
        if reason:
            rejected[reason] += 1
        else:
            kept[word] = None
    return list(kept), rejected


def _why_not(word: str, allowed: set[str], longest: int) -> str:
    if not word:
        return "empty"
    if any(not (scripts.script_extension(character) & (allowed | {"Zinh"})) for character in word):
        return "with other characters than the script's"
    if unicodedata.category(word[0]).startswith("M"):
        return "beginning with a mark"
    return f"longer than {longest} characters" if len(word) > longest else ""


def _frequent(language: str) -> list[str]:
    try:
        words: list[str] = importlib.import_module("wordfreq").top_n_list(language, _FREQUENT)
    except ImportError as error:
        raise UserError("the Python package wordfreq is not installed", "Run: pip install wordfreq") from error
    except LookupError as error:
        raise UserError(f"no words of {language!r} are known here", "Use a language of wordfreq's") from error
    return words


def _by_frequency(words: Iterable[str], frequent: Iterable[str]) -> list[str]:
    """Order by rank; the frequency lists have folded capitals and Greek's final sigma away."""
    rank = {word.casefold(): place for place, word in reversed(list(enumerate(frequent)))}
    return sorted(words, key=lambda word: rank.get(word.casefold(), len(rank)))


def _chinese() -> list[str]:
    lines = (line.split() for line in _packaged("jieba", "dict.txt"))
    return [word for word, count, *_ in sorted(lines, key=lambda fields: -int(fields[1]))]


def _japanese() -> list[str]:
    lines = _debian("edict", Path("/usr/share/edict/edict"), "euc-jp")[1:]
    return _by_frequency((line.split(" ", 1)[0] for line in lines), _frequent("ja"))


def _korean() -> list[str]:
    # The dictionary spells syllables out in letters; normalisation composes them.
    words = [line.split("/", 1)[0] for line in _debian("hunspell-ko", Path("/usr/share/hunspell/ko.dic"))[1:]]
    return [*_frequent("ko"), *words]


def _thai() -> list[str]:
    frequent = [line.split("\t")[0] for line in _packaged("pythainlp", "corpus/tnc_freq.txt")]
    return _by_frequency(_packaged("pythainlp", "corpus/words_th.txt"), frequent)


def _vietnamese() -> list[str]:
    syllables = [line.split("/", 1)[0] for line in _debian("hunspell-vi", Path("/usr/share/hunspell/vi_VN.dic"))[1:]]
    return _by_frequency(syllables, _frequent("vi"))


def _german() -> list[str]:
    return _by_frequency(_debian("wngerman", Path("/usr/share/dict/ngerman")), _frequent("de"))


SOURCES: dict[str, Callable[[], list[str]]] = {
    "zh": _chinese,
    "ja": _japanese,
    "ko": _korean,
    "th": _thai,
    "vi": _vietnamese,
    "de": _german,
    "hi": lambda: [*_frequent("hi"), *_aspell("hi")],
    "el": lambda: _by_frequency(_aspell("el"), _frequent("el")),
}


def _aspell(language: str) -> list[str]:
    """Return all forms of all words of an aspell dictionary."""
    if not shutil.which("aspell"):
        raise UserError("aspell is not installed", f"Run: apt-get install aspell aspell-{language}")
    command = ["aspell", "--encoding=utf-8", "dump", "master", language]
    dumped = subprocess.run(command, capture_output=True, check=False)
    if dumped.returncode:
        raise UserError(f"aspell has no words of {language!r}", f"Run: apt-get install aspell-{language}")
    command = ["aspell", "--encoding=utf-8", "expand", "-l", language]
    return subprocess.run(command, input=dumped.stdout, capture_output=True, check=True).stdout.decode().split()


def _debian(package: str, path: Path, encoding: str = "utf-8") -> list[str]:
    if not path.is_file():
        raise UserError(f"there is no {path}", f"Run: apt-get install {package}")
    return path.read_text(encoding=encoding).splitlines()


def _packaged(package: str, name: str) -> list[str]:
    """Read the lines of a file in an installed Python package, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise UserError(f"the Python package {package} is not installed", f"Run: pip install {package}")
    return (Path(found.origin).parent / name).read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    run_script(main)
