"""Options that take several paths: ``--data A B --validation C D`` names two of each.

Left to itself, the parser gives an option one word and hands the others to the command's arguments, whatever option
they stand behind: paths behind ``--validation`` or ``--exclude-near`` would be trained on without a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperOption


class PathListCommand(TyperCommand):
    """A command whose options of several paths take all words that follow, up to the next option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its words, which is how the parser takes several."""
        lists = {name for option in self.get_params(ctx) if _takes_paths(option) for name in option.opts}
        return super().parse_args(ctx, _repeated(args, lists))


def _takes_paths(option: object) -> bool:
    return isinstance(option, TyperOption) and option.type_descriptor.annotation == list[Path]


def _repeated(words: list[str], lists: set[str]) -> list[str]:
    """Return ``words`` with the name of a list before each of its words: ``--data A B`` as ``--data A --data B``."""
    repeated: list[str] = []
    taking, has_one = None, False
    for position, word in enumerate(words):
        if word == "--":
            return [*repeated, *words[position:]]
        if word.startswith("-") and word != "-":
            name, _, value = word.partition("=")
            taking, has_one = (name if name in lists else None), bool(value)
        elif taking and has_one:
            repeated.append(taking)
        else:
            has_one = True
        repeated.append(word)
    return repeated
