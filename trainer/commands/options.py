"""Options that several training commands share, and their conversion."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dptr.cache.errors import UserError
from dptr.cache.options import LARGEST_SEED, AnyPath, Paths, paths_of
from dptr.cache.remote import at_hand
from dptr.trainer.choices import ReadingPrecision, Tracker

if TYPE_CHECKING:
    from dptr.cache.crops.dataset import WordImages
    from dptr.trainer.training.runs import Trained

RunFolder = Annotated[AnyPath | None, typer.Option("-o", "--out", help="Folder of the run.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Total optimiser steps.")]
Seed = Annotated[int | None, typer.Option(min=0, max=LARGEST_SEED, help="Seed of everything random.")]
Changes = Annotated[
    Mapping[str, object] | Sequence[str] | None, typer.Option("--set", help="Set a recipe key: section.key=value.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Train on a CPU although the recipe needs a GPU.")]
Track = Annotated[Tracker | None, typer.Option("--track", help="Also log metrics to this tracker.")]

Data = Annotated[
    Paths | None, typer.Argument(metavar="DATA", help="Labelled crops: folders, LMDB, Parquet, tar or label files.")
]
LexiconFile = Annotated[
    str | None, typer.Option("--lexicon", help="Lexicon, one word a line, for CTC beam search; none: no lexicon.")
]
Arithmetic = Annotated[
    ReadingPrecision, typer.Option("--precision", help="Arithmetic; auto: bf16 on CPUs that support it, else fp32.")
]
OutFile = Annotated[Path | None, typer.Option("-o", "--out", help="Output file; default: in the run's folder.")]

#: Longer than any label: evaluation excludes no label for its length.
_ANY_LENGTH = 1000


def recipe_changes(changes: Mapping[str, object] | Sequence[str] | None, options: Mapping[str, object]) -> list[str]:
    """Return changes to a recipe as ``section.key=value``.

    Args:
        changes: key -> value, or strings as they are returned.
        options: key -> value, None for no change; they come last, so they win.
    """
    given = list(changes or ()) if not isinstance(changes, Mapping) else _assigned(changes)
    return given + _assigned({key: value for key, value in options.items() if value is not None})


def _assigned(values: Mapping[str, object]) -> list[str]:
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def named_data(data: Paths | None) -> list[Path]:
    """Return where labelled crops are; what lies on object storage is fetched.

    Raises:
        UserError: none are named, one does not exist, or one cannot be fetched.
    """
    paths = [at_hand(path) for path in paths_of(data)]
    if not paths:
        raise UserError("no data named", "Give labelled crops: a folder, LMDB, Parquet, tar or label file")
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no {path}", "Name a folder or file with labelled word images")
    return paths


def labels_left_out(images: "WordImages") -> list[str]:
    """Report rejected and changed labels, with examples."""
    lines = []
    for what, tally in (("rejected", images.rejected), ("used, but changed", images.changed)):
        examples = tally.examples
        for reason, count in tally.counts.most_common():
            lines.append(f"{what}: {count:,} labels, {reason} (such as {examples[reason][0]})")
    return lines


def crops_for(data: Paths | None, run: "Trained") -> "WordImages | None":
    """Open labelled crops with a run's charset, or as written where it has no label of theirs; None without data."""
    from dptr.cache.crops.dataset import WordImages
    from dptr.cache.text.normalization import Normalization

    if not data:
        return None
    paths = named_data(data)
    try:
        # Characters that the recogniser cannot emit count as errors.
        return WordImages.open(paths, run.charset, Normalization.of(run.charset, max_label_length=_ANY_LENGTH))
    except UserError:
        return WordImages.open_as_written(paths)
