"""Write what people photograph: words, numbers and codes, lines of receipts and documents, number plates.

    python examples/reader/words.py words/

``common.txt``, ``dictionary.txt`` and ``miscellaneous.txt`` hold words and strings without spaces; ``lines.txt``,
``receipts.txt`` and ``documents.txt`` hold lines of up to 40 characters with their spaces; ``plates.txt`` holds number
plates of many countries' patterns. Words come from Debian's ``wamerican`` and ``wbritish`` and from the frequency
lists of ``wordfreq`` (``pip install wordfreq``), of English and of other languages in Latin letters. Half of the
single words are in capitals, a quarter are capitalised, as on signs.
"""

from __future__ import annotations

import argparse
import random
import re
import string
from collections.abc import Callable
from pathlib import Path

from dptr.cache.errors import UserError, run_script

DICTIONARIES = ("/usr/share/dict/american-english", "/usr/share/dict/british-english")
#: Languages of wordfreq and how many of their words, frequent ones first.
LANGUAGES = {
    "en": 60_000, "de": 15_000, "fr": 15_000, "es": 15_000, "it": 15_000, "nl": 10_000, "pt": 10_000, "pl": 5_000,
    "id": 10_000, "ms": 10_000, "fil": 5_000, "sv": 5_000, "da": 5_000, "fi": 5_000, "tr": 5_000,
}  # fmt: skip
COMMON, MISCELLANEOUS, LINES, PLATES = 8_000, 160_000, 120_000, 80_000
LONGEST, LONGEST_LINE = 25, 40

Makers = list[tuple[int, Callable[[], str]]]


def main() -> None:
    """Parse arguments, write the lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the lists")
    write(parser.parse_args().out)


def write(out: Path) -> None:
    """Write the seven lists."""
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    listed = [word for path in DICTIONARIES for word in Path(path).read_text(encoding="utf-8").split()]
    used = frequent_words()
    dictionary = sorted(set(filter(_is_word, listed)) | set(used))
    common = used[:COMMON]
    made = Texts(dictionary, common, rng)
    _write(out / "common.txt", [form for word in common for form in (word.upper(), word.capitalize(), word)])
    _write(out / "dictionary.txt", [in_case(word, rng) for word in dictionary])
    for name, makers, count, longest in (
        ("miscellaneous", made.miscellaneous(), MISCELLANEOUS, LONGEST),
        ("lines", made.lines(), LINES, LONGEST_LINE),
        ("receipts", made.receipts(), LINES, LONGEST_LINE),
        ("documents", made.documents(), LINES, LONGEST_LINE),
        ("plates", [(1, made.plate)], PLATES, 9),
    ):
        drawn = rng.choices([make for _, make in makers], [weight for weight, _ in makers], k=count)
        _write(out / f"{name}.txt", [text for text in (make() for make in drawn) if 0 < len(text) <= longest])


def frequent_words() -> list[str]:
    """Return words in ASCII letters by their frequency, those of English first.

    Raises:
        UserError: wordfreq is not installed.
    """
    try:
        from wordfreq import top_n_list
    except ModuleNotFoundError as error:
        raise UserError("frequencies of words come from wordfreq", "pip install wordfreq") from error
    found = [word for language, count in LANGUAGES.items() for word in top_n_list(language, count) if _is_word(word)]
    return list(dict.fromkeys(found))


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


class Texts:
    """Makers of texts, each with how often it is drawn relative to the others of its list."""

    def __init__(self, dictionary: list[str], common: list[str], rng: random.Random) -> None:
        self.dictionary, self.common, self.rng = dictionary, common, rng

    def digits(self, least: int, most: int | None = None) -> str:
        """Return ``least`` to ``most`` digits."""
        return "".join(self.rng.choices(string.digits, k=self.rng.randint(least, most or least)))

    def letters(self, least: int, most: int | None = None) -> str:
        """Return ``least`` to ``most`` letters in no order."""
        return in_case(
            "".join(self.rng.choices(string.ascii_lowercase, k=self.rng.randint(least, most or least))), self.rng
        )

    def of(self, *choices: str) -> str:
        """Draw one."""
        return self.rng.choice(choices)

    def small(self) -> str:
        """Draw a word, frequent ones as often as all others, in small letters."""
        return self.rng.choice(self.dictionary if self.rng.random() < 0.5 else self.common).lower()

    def word(self) -> str:
        """Draw a word in some case."""
        return in_case(self.small(), self.rng)

    def words(self, least: int, most: int) -> str:
        """Draw words that share a case, as lines have them."""
        case = self.rng.choices((str.upper, str.title, str.lower, str.capitalize), (45, 30, 13, 12))[0]
        return case(" ".join(self.small() for _ in range(self.rng.randint(least, most))))

    def pattern(self, pattern: str) -> str:
        """Fill in a pattern: 9 is a digit, A a capital letter, X either, a a small letter."""
        fills = {"9": string.digits, "A": string.ascii_uppercase, "X": string.ascii_uppercase + string.digits,
                 "a": string.ascii_lowercase}  # fmt: skip
        return "".join(self.rng.choice(fills[sign]) if sign in fills else sign for sign in pattern)

    def price(self) -> str:
        """Return an amount, mostly without currency."""
        amount = self.of(f"{self.rng.randint(0, 99)}.{self.digits(2)}", f"{self.digits(1, 3)}.{self.digits(2)}",
                         f"{self.digits(1, 3)},{self.digits(2)}", f"{self.digits(1)},{self.digits(3)}.{self.digits(2)}",
                         f"0.{self.digits(2)}", f"{self.digits(1, 2)}.00")  # fmt: skip
        currency = self.rng.choices(("", "$", "RM", "RM ", "-", "EUR ", "$ ", "USD "), (55, 12, 9, 6, 4, 4, 4, 2))[0]
        return currency + amount

    def date(self) -> str:
        """Return a date or a time of day or both."""
        day, month = f"{self.rng.randint(1, 31):02}", f"{self.rng.randint(1, 12):02}"
        year = str(self.rng.randint(1960, 2035))
        name = self.of("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
        clock = f"{self.rng.randint(0, 23):02}:{self.digits(2)}"
        sign = self.of("/", "/", "-", ".")
        date = self.of(f"{day}{sign}{month}{sign}{year}", f"{day}{sign}{month}{sign}{year[2:]}",
                       f"{year}{sign}{month}{sign}{day}", f"{day} {name} {year}", f"{day}-{name}-{year[2:]}",
                       f"{name} {day}, {year}", f"{day}{name.upper()}{year[2:]}")  # fmt: skip
        time = clock + self.of("", f":{self.digits(2)}", " PM", " AM", "PM", f":{self.digits(2)} PM")
        return self.rng.choices((date, time, f"{date} {time}"), (5, 3, 2))[0]

    def phone(self) -> str:
        """Return a telephone number."""
        return self.pattern(
            self.of(
                "999-999-9999",
                "(999) 999-9999",
                "+99 999 9999999",
                "09-9999 9999",
                "99-99999999",
                "1-999-99-9999",
                "999.999.9999",
                "+1 999 999 9999",
                "0999 999 999",
                "999-9999",
            )
        )

    def address(self) -> str:
        """Return an e-mail or web address."""
        end = self.of(".com", ".com", ".org", ".net", ".co.uk", ".com.my", ".de", ".in", ".io", ".edu", ".gov")
        host = self.small() + self.of("", "", self.small(), "-" + self.small()) + end
        return self.of(f"www.{host}", host, f"{self.small()}@{host}", f"{self.small()}.{self.small()}@{host}",
                       f"http://{host}", f"https://www.{host}/{self.small()}", f"WWW.{host.upper()}")  # fmt: skip

    def code(self) -> str:
        """Return a serial, article or reference number; some end in the check digit of their kind."""
        kind = self.rng.random()
        if kind < 0.15:
            return _with_ean_digit(self.digits(12 if self.rng.random() < 0.7 else 7))
        if kind < 0.25:
            return _with_luhn_digit(self.digits(15))
        return self.pattern(
            self.of("XXXXXX", "XXXXXXXX", "AA999999", "A9999999", "99999999", "999-999", "AAA-9999", "AA-9999-AA",
                    "9999999999", "XXXX-XXXX-XXXX", "999999-99-9999", "AAA9999999", "A99-999", "99AA999", "9AAA999",
                    "SN XXXXXXXXXX", "S/N: XXXXXXXX", "XXXXXXXXXXXX", "AA 99 9999", "9999 9999 9999 9999", "XX-XXX",
                    "AAAA9999999", "XXXXXXXXXXXXXXXXX", "#999999", "999/9999/99", "A9", "99A", "AA99", "9-9999-9")
        )  # fmt: skip

    def street(self) -> str:
        """Return a part of a postal address."""
        name, number = self.small().title(), self.digits(1, 4)
        other, post = self.small().title(), self.digits(5)
        line = self.of(
            f"{number} {name} St.", f"No. {number}, Jalan {name}", f"{number} {name} Avenue, {post}",
            f"{post} {name} {other}", f"{name}, {self.pattern('AA')} {post}", f"P.O. Box {number}",
            f"Lot {number}, {name} {other},", f"{name}strasse {number}", f"{number}-{self.digits(1, 2)}, {name} Rd",
            f"Taman {name},",
        )  # fmt: skip
        return line.upper() if self.rng.random() < 0.6 else line

    def miscellaneous(self) -> Makers:
        """Return what signs, labels and displays have besides words; no spaces."""
        rng, digits, letters, word, small = self.rng, self.digits, self.letters, self.word, self.small

        def with_mark() -> str:
            text = word()
            position = rng.randint(0, len(text))
            return text[:position] + rng.choice(string.punctuation) + text[position:]

        return [
            (14, lambda: digits(1, 3)),
            (10, lambda: digits(2, 8)),
            (5, lambda: rng.choice("$$$#+@") + digits(1, 3)),
            (8, lambda: self.price().replace(" ", "")),
            (4, lambda: f"{digits(1, 3)},{digits(3)}"),
            (4, lambda: f"{digits(1, 2)}%"),
            (4, lambda: f"{digits(1, 2)}:{digits(2)}" + rng.choice(("", "", "am", "pm", "AM", "PM"))),
            (5, lambda: f"{digits(2, 4)}-{digits(2, 4)}" + rng.choice(("", "-" + digits(4)))),
            (4, lambda: f"#{digits(2)}-{digits(2)}"),
            (6, lambda: self.date().replace(" ", "")),
            (3, lambda: rng.choice(("19", "20")) + digits(2) + rng.choice(("", "", "s"))),
            (3, lambda: in_case(rng.choice(("1st", "2nd", "3rd", digits(1, 2) + "th")), rng)),
            (12, lambda: self.code().replace(" ", "")),
            (10, self.plate),
            (8, lambda: "".join(rng.choices(string.ascii_uppercase + string.digits, k=rng.randint(2, 10)))),
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
            (6, self.address),
            (4, lambda: rng.choice((f"#{small()}", f"@{small()}"))),
            (2, lambda: ".".join(letters(1).upper() for _ in range(rng.randint(2, 4))) + rng.choice(("", "."))),
            (3, lambda: word() + digits(1, 3)),
            (4, lambda: self.phone().replace(" ", "")),
            (2, lambda: rng.choice(string.punctuation)),
            (3, with_mark),
        ]

    def lines(self) -> Makers:
        """Return lines of signs, titles and labels."""
        return [
            (10, lambda: self.words(2, 3)),
            (6, lambda: self.words(3, 6)),
            (2, lambda: f"{self.words(1, 2)} {self.digits(1, 3)}"),
            (1, lambda: f"{self.words(1, 2)} & {self.words(1, 2)}"),
        ]

    def receipts(self) -> Makers:
        """Return texts of receipts and invoices."""
        of, rng, digits = self.of, self.rng, self.digits

        def field() -> str:
            name = of(
                "TOTAL",
                "Sub Total",
                "CASH",
                "Change",
                "Tax",
                "GST @6%",
                "Rounding",
                "Qty",
                "Invoice No",
                "Date",
                "Cashier",
                "Table",
                "Bill",
                "Tel",
                "Fax",
                "Tender",
                "Visa",
                "Discount",
                "GST ID",
                "Co. Reg No",
                "Balance",
                "Amount Due",
                "Net",
                "VAT",
                "Order",
                "Receipt",
                "Item",
                "Doc No",
                "Time",
                "POS",
            )
            name = of(name, name.upper(), name.title()) + of("", "", ":", " :", "#", ".", " -", " (RM)")
            value = of(self.price(), self.date(), digits(1, 12), self.code(), self.small().title(), "", "")
            return f"{name}{of(' ', '', ' ')}{value}".strip()

        return [
            (22, self.price),
            (6, lambda: digits(1, 2)),
            (4, lambda: digits(3, 13)),
            (18, field),
            (12, lambda: self.words(1, 4)),
            (5, lambda: f"{digits(1, 2)} {of('x', 'X')} {self.price()}"),
            (6, lambda: f"{self.words(1, 3)} {digits(1, 3)}{of('ML', 'G', 'KG', 'PCS', 'S', 'L', 'CM', '')}"),
            (6, self.date),
            (4, self.phone),
            (6, self.street),
            (4, self.code),
            (4, lambda: f"({self.words(1, 2)})" if rng.random() < 0.5 else f"({digits(6)}-{self.pattern('A')})"),
            (3, lambda: f"{self.price()} {of('SR', 'ZR', 'S', 'T', 'A', 'F', 'N')}"),
            (3, lambda: f"{digits(1, 2)}%"),
            (3, lambda: f"{self.words(1, 3)}{of(':', '.', ',', '!', ' -', '*', '**')}"),
            (3, lambda: f"{of('*', '**', '***', '-', '--', '@', '#')}{of('', ' ')}{self.words(1, 3)}"),
            (2, self.address),
            (2, lambda: f"{self.words(1, 3)} {self.price()}"),
        ]

    def documents(self) -> Makers:
        """Return texts of letters, forms, books, packages, screens and name plates."""
        return [
            (20, lambda: self.words(2, 6)),
            (10, lambda: self.words(1, 2)),
            (6, lambda: f"{self.words(1, 3)}: {self.of(self.code(), self.date(), self.words(1, 2))}"),
            (5, lambda: f"{self.words(1, 3)}{self.of(',', '.', ';', ':', '?', '!')}"),
            (5, self.code),
            (5, self.date),
            (4, self.street),
            (4, self.phone),
            (4, self.address),
            (4, self.price),
            (4, lambda: f"{self.digits(1, 4)} {self.of('V', 'Hz', 'W', 'kg', 'mm', 'MHz', 'GB', 'A', 'mAh', 'km/h')}"),
            (3, lambda: f'"{self.words(1, 3)}"'),
            (3, lambda: f"{self.small().capitalize()} {self.pattern('A')}. {self.small().capitalize()}"),
            (2, lambda: f"{self.digits(1, 2)}.{self.digits(1)} {self.words(1, 3)}"),
            (2, lambda: f"{self.words(1, 2)} ({self.digits(1, 4)})"),
        ]

    def plate(self) -> str:
        """Return the characters of a number plate by one of many countries' patterns, without spaces."""
        if self.rng.random() < 0.15:
            return self.pattern("X" * self.rng.randint(4, 8))
        return self.pattern(
            self.of("AAA9999", "9AAA999", "AAA999", "999AAA", "AA9999A", "AA99999", "9AA9999", "AAA9A99", "A999999",
                    "AA999AA", "AB99AAA", "AA99AAA", "AAA9A99", "AAA9999", "A9999AA", "9999AAA", "AAA99A", "AA9999",
                    "AAA999", "AA999AA", "A99AAA", "99AAA9", "AAA99", "999999", "AA99AA9999", "999AA99", "A999AA",
                    "AA999999", "9A99999", "AAA99AA", "AA999A", "AAAAA99", "AAAA999", "99AA99", "AA99A999")
        )  # fmt: skip


def _with_ean_digit(digits: str) -> str:
    """Append the check digit of EAN-8, EAN-13 or UPC-A."""
    total = sum(int(digit) * (3 if place % 2 == 0 else 1) for place, digit in enumerate(reversed(digits)))
    return digits + str(-total % 10)


def _with_luhn_digit(digits: str) -> str:
    """Append the check digit of card and device numbers (Luhn)."""
    doubled = [int(digit) * (2 - place % 2) for place, digit in enumerate(reversed(digits))]
    return digits + str(-sum(value // 10 + value % 10 for value in doubled) % 10)


def _is_word(text: str) -> bool:
    return re.fullmatch("[A-Za-z]{2,15}", text) is not None


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
