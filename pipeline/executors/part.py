"""`--part 3/16`: the third of sixteen parts of a command's work, which are made independently.

The numbers of a store's shards depend only on the inputs, so a part makes every sixteenth shard. It writes them into a
folder beside the store, from which `dptr merge` moves them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dptr.cache.errors import UserError

_MOST = 100_000


@dataclass(frozen=True)
class Part:
    """One of ``of`` parts, counted from 1; by default the only one."""

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
        """Whether it is the only part."""
        return self.of == 1

    def has(self, number: int) -> bool:
        """Return whether this part makes item ``number``, counted from 0."""
        return number % self.of == self.number - 1

    def stretch(self, count: int) -> range:
        """Return this part's contiguous range of ``count`` items."""
        return range((self.number - 1) * count // self.of, self.number * count // self.of)

    def beside(self, out: Path, ending: str = "") -> Path:
        """Return the folder of this part of ``out``; ``out`` itself if it is the only part."""
        return out if self.is_whole else parts_folder(out) / f"{self}{ending}"

    def __str__(self) -> str:
        return f"{self.number:0{len(str(self.of))}}-of-{self.of}"


WHOLE = Part()


def parts_folder(out: Path) -> Path:
    """Return the folder that the parts of ``out`` lie in."""
    return out.with_name(f"{out.name}.parts")
