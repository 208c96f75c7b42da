"""Label to prompt, and the part of a prompt's tokens that no label can change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dptr.cache.errors import UserError

#: The authors' template. CLIP's tokenizer may fuse the quote with the label ('street' becomes 's + tre + et).
DEFAULT_TEMPLATE = "a photo of a '{label}'"


@dataclass(frozen=True)
class Template:
    """A sentence with exactly one ``{label}`` in it."""

    text: str = DEFAULT_TEMPLATE

    def __post_init__(self) -> None:
        if self.text.count("{label}") != 1:
            raise UserError(
                f"the template {self.text!r} does not hold {{label}} exactly once", "For example: a '{label}'"
            )

    def prompt(self, label: str) -> str:
        """Put a label into the sentence."""
        before, after = self.text.split("{label}")
        return before + label + after

    def shared_tokens(self, tokenize: Callable[[list[str]], list[list[int]]]) -> list[int]:
        """Return the token ids that start every prompt, whatever the label.

        Computed from token ids rather than from text: whatever stands between the last white space and the label may
        fuse with it, and only tokens that survive probing with labels of every kind are shared.

        Args:
            tokenize: prompts to token ids, with begin and end.
        """
        probes = [
            "street",
            "the",
            "red",
            "very",
            "made",
            "llama",
            "door",
            "a",
            "Q",
            "7",
            "'",
            "s'",
            "-",
            "é",
            "中",
            "я",
            "!x",
        ]
        rows = tokenize([self.prompt(probe) for probe in probes])
        shared: list[int] = []
        for column in zip(*rows, strict=False):
            if len(set(column)) > 1:
                break
            shared.append(column[0])
        return shared
