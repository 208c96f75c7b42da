"""Loading weights that fit in part, with a report of matching, missing and extra tensors.

A changed charset keeps every unit that both sides have, a longer label the positions that both have, higher images how
a column of them is merged. All else must fit or is reported, because a decoder that starts from random weights
unnoticed is taken for a bad recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dptr.cache.text.charset import Charset

#: The convolutional encoder's weights, (to, from, rows, 1), that make one token of the rows of a column.
_COLUMN_MERGE = "encoder.merge.0.weight"


@dataclass
class Coverage:
    """Report of loading weights.

    Attributes:
        loaded: complete tensors. partial: tensor -> loaded part. missing: expected but not there.
        extra: there but not expected. mismatched: tensor -> the two shapes.
    """

    loaded: list[str] = field(default_factory=list)
    partial: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    mismatched: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the report, a line for each kind of outcome that occurred."""
        lines = [f"{len(self.loaded)} tensors loaded"]
        lines += [f"loaded in part: {name} ({what})" for name, what in self.partial.items()]
        lines += [f"left as initialised, shapes differ: {name} ({what})" for name, what in self.mismatched.items()]
        if self.missing:
            lines.append(f"left as initialised, not in the file: {', '.join(self.missing)}")
        if self.extra:
            lines.append(f"in the file but not in the model: {', '.join(self.extra)}")
        return lines


def load_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], old: Charset | None = None, new: Charset | None = None
) -> Coverage:
    """Copy ``tensors`` into ``model`` where names and shapes fit, carrying characters and positions over.

    Args:
        model: a decoder, or a module whose part ``decoder`` is one.
        tensors: the other model's state dict.
        old, new: the charsets of the two, when characters may have to be carried over.
    """
    coverage = Coverage(extra=sorted(set(tensors) - set(model.state_dict())))
    with torch.no_grad():
        for name, target in model.state_dict().items():
            source = tensors.get(name)
            if source is None:
                coverage.missing.append(name)
            elif old is not None and new is not None and _is_per_character(name) and not old.same_units_as(new):
                shared = _carry_characters(target, source, name, old, new)
                coverage.partial[name] = f"{shared} of {len(new.characters)} characters"
            elif source.shape == target.shape:
                target.copy_(source)
                coverage.loaded.append(name)
            elif name.endswith("positions") and source.shape[1:] == target.shape[1:]:
                count = min(len(source), len(target))
                target[:count].copy_(source[:count])
                coverage.partial[name] = f"{count} of {len(target)} positions"
            elif name.endswith(_COLUMN_MERGE) and source.shape[:2] == target.shape[:2]:
                target.copy_(_stretched(source.float(), target.shape[2]))
                coverage.partial[name] = f"{source.shape[2]} rows stretched to {target.shape[2]}"
            else:
                coverage.mismatched[name] = f"{tuple(source.shape)} in the file, {tuple(target.shape)} in the model"
    return coverage


def _stretched(weights: Tensor, rows: int) -> Tensor:
    """Spread what is summed over the rows of a column over as many as a higher or lower image has."""
    before = weights.shape[2]
    spread = F.interpolate(weights.squeeze(3), size=rows, mode="linear", align_corners=True)
    return spread.unsqueeze(3) * (before / rows)


def _is_per_character(name: str) -> bool:
    # A recogniser's decoder, or the one within a decoder of pooled vectors.
    part = name.rpartition("decoder.")[2]
    return part in ("head.weight", "head.bias", "embedding.weight")


def _carry_characters(target: Tensor, source: Tensor, name: str, old: Charset, new: Charset) -> int:
    """Copy the rows of the end, begin, padding and every shared character; return how many characters are shared."""
    if source.shape[1:] != target.shape[1:]:
        return 0
    target[new.end].copy_(source[old.end])
    if "embedding" in name:
        target[new.begin].copy_(source[old.begin])
        target[new.padding].copy_(source[old.padding])
    row_of = {unit: row for row, unit in enumerate(old.characters, start=1)}
    shared = [(row, row_of[unit]) for row, unit in enumerate(new.characters, start=1) if unit in row_of]
    if shared:
        rows, rows_of_old = torch.tensor(shared).T
        target[rows] = source[rows_of_old].to(target)  # half precision, where it was exported so
    return len(shared)
