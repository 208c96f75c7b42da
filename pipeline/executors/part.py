"""`--part 3/16`: the third of sixteen shares of a command's work, which are made without talking to each other.

A store's shards have numbers that hang on the inputs alone, so each part knows which are its own: every sixteenth. It
writes them into a folder beside the store, which `dptr merge` empties.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dptr.cache.errors import UserError

_MOST = 100_000


@dataclass(frozen=True)
class Part:
    """One of ``of`` shares, counted from 1; by default the only one."""

    number: int = 1
    of: int = 1

    @classmethod
    def named(cls, text: str | None) -> Part:
        """Read ``3/16``; None is the whole.

        Raises:
            UserError: it is no such text.
        """
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        number, of = (int(digits) for digits in match.groups()) if match else (0, 0)
        if not 1 <= number <= of <= _MOST:
            raise UserError(f"--part {text} is not a part", "Use NUMBER/TOTAL counted from 1, such as 3/16")
        return cls(number, of)

    @property
    def is_whole(self) -> bool:
        """Whether there is no other part."""
        return self.of == 1

    def has(self, number: int) -> bool:
        """Return whether piece ``number`` of the work, counted from 0, is this part's."""
        return number % self.of == self.number - 1

    def stretch(self, count: int) -> range:
        """Return which of ``count`` things are this part's where neighbours should stay together."""
        return range((self.number - 1) * count // self.of, self.number * count // self.of)

    def beside(self, out: Path, ending: str = "") -> Path:
        """Return where the part writes what becomes a share of ``out``; ``out`` itself if it is the whole."""
        return out if self.is_whole else parts_folder(out) / f"{self}{ending}"

    def __str__(self) -> str:
        return f"{self.number:0{len(str(self.of))}}-of-{self.of}"


WHOLE = Part()


def parts_folder(out: Path) -> Path:
    """Return the folder that the parts of ``out`` lie in."""
    return out.with_name(f"{out.name}.parts")
