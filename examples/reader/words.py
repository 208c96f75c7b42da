"""Write what signs say: frequent words, a dictionary, and numbers, prices, addresses and single letters.

    python examples/reader/words.py words/

Words come from the dictionaries of Debian's ``wamerican`` and ``wbritish``; those that Python's own sources use count
as frequent. Half of the words are in capitals, a quarter are capitalised, as on signs.
"""

from __future__ import annotations

import argparse
import random
import re
import string
import sysconfig
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from dptr.cache.errors import run_script

DICTIONARIES = ("/usr/share/dict/american-english", "/usr/share/dict/british-english")
MISCELLANEOUS = 120_000
LONGEST = 25


def main() -> None:
    """Parse, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the lists")
    write(parser.parse_args().out)


def write(out: Path) -> None:
    """Write ``common.txt``, ``dictionary.txt`` and ``miscellaneous.txt``."""
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    dictionary = sorted(
        {word for path in DICTIONARIES for word in Path(path).read_text(encoding="utf-8").split() if _is_word(word)}
    )
    common = frequent({word.lower() for word in dictionary})
    _write(out / "common.txt", [form for word in common for form in (word.upper(), word.capitalize(), word)])
    _write(out / "dictionary.txt", [in_case(word, rng) for word in dictionary])
    kinds = miscellaneous(dictionary, common, rng)
    drawn = rng.choices([make for _, make in kinds], [weight for weight, _ in kinds], k=MISCELLANEOUS)
    _write(out / "miscellaneous.txt", [text for text in (make() for make in drawn) if len(text) <= LONGEST])


def frequent(known: set[str], least: int = 3) -> list[str]:
    """Return known words that the standard library's sources use ``least`` times, frequent ones first."""
    counts: Counter[str] = Counter()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        found = re.findall("[A-Za-z]{2,14}", path.read_text(encoding="utf-8", errors="ignore"))
        counts.update(word.lower() for word in found)
    return [word for word, count in counts.most_common() if count >= least and word in known]


def in_case(word: str, rng: random.Random) -> str:
    """Write a word in capitals, capitalised, small or, seldom, in any mixture."""
    chance = rng.random()
    if chance < 0.5:
        return word.upper()
    if chance < 0.76:
        return word.capitalize()
    if chance < 0.97:
        return word.lower()
    return "".join(rng.choice((letter.upper(), letter.lower())) for letter in word)


def miscellaneous(dictionary: list[str], common: list[str], rng: random.Random) -> list[tuple[int, Callable[[], str]]]:
    """Return what signs have besides words: (weight, maker)."""

    def digits(least: int, most: int | None = None) -> str:
        return "".join(rng.choices(string.digits, k=rng.randint(least, most or least)))

    def letters(least: int, most: int | None = None) -> str:
        return in_case("".join(rng.choices(string.ascii_lowercase, k=rng.randint(least, most or least))), rng)

    def word() -> str:
        return in_case(rng.choice(dictionary if rng.random() < 0.5 else common), rng)

    def small() -> str:
        return rng.choice(dictionary).lower()

    def with_mark() -> str:
        text = word()
        position = rng.randint(0, len(text))
        return text[:position] + rng.choice(string.punctuation) + text[position:]

    return [
        (10, lambda: digits(1, 3)),
        (8, lambda: digits(2, 8)),
        (5, lambda: rng.choice("$$$#+@") + digits(1, 3)),
        (6, lambda: rng.choice(("$", "$", "", "")) + f"{digits(1, 3)}.{digits(2)}"),
        (4, lambda: f"{digits(1, 3)},{digits(3)}"),
        (4, lambda: f"{digits(1, 2)}%"),
        (4, lambda: f"{digits(1, 2)}:{digits(2)}" + rng.choice(("", "", "am", "pm", "AM", "PM"))),
        (5, lambda: f"{digits(2, 4)}-{digits(2, 4)}" + rng.choice(("", "-" + digits(4)))),
        (4, lambda: f"#{digits(2)}-{digits(2)}"),
        (4, lambda: f"{digits(1, 2)}/{digits(1, 2)}" + rng.choice(("", "/" + digits(2), "/" + digits(4)))),
        (3, lambda: rng.choice(("19", "20")) + digits(2) + rng.choice(("", "", "s"))),
        (3, lambda: in_case(rng.choice(("1st", "2nd", "3rd", digits(1, 2) + "th")), rng)),
        (8, lambda: "".join(rng.choices(string.ascii_uppercase + string.digits, k=rng.randint(2, 7)))),
        (5, lambda: rng.choice(string.ascii_uppercase) + digits(1, 3)),
        (9, lambda: letters(1)),
        (16, lambda: letters(2, 3)),
        (10, lambda: letters(4, 9)),
        (7, lambda: word() + rng.choice("!!?..,,:;")),
        (6, lambda: word() + rng.choice(("'s", "'S"))),
        (5, lambda: f"{word()}-{word()}"),
        (3, lambda: f"({word()})"),
        (2, lambda: f'"{word()}"'),
        (4, lambda: rng.choice((f"{word()}/{word()}", f"{word()}&{word()}"))),
        (4, lambda: rng.choice(("www.", "")) + small() + rng.choice((".com", ".org", ".net", ".co.uk", ".sg", ".in"))),
        (4, lambda: rng.choice((f"#{small()}", f"{small()}@{small()}.com"))),
        (2, lambda: ".".join(letters(1).upper() for _ in range(rng.randint(2, 4))) + rng.choice(("", "."))),
        (3, lambda: word() + digits(1, 3)),
        (2, lambda: rng.choice(string.punctuation)),
        (3, with_mark),
    ]


def _is_word(text: str) -> bool:
    return re.fullmatch("[A-Za-z]{2,15}", text) is not None


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
