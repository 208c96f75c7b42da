"""Options that several training commands share, and what they are turned into."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dptr.cache import hub
from dptr.cache.choices import Units
from dptr.cache.errors import UserError
from dptr.cache.file_names import RUN_FILE, SAFETENSORS
from dptr.cache.options import LARGEST_SEED
from dptr.cache.remote import at_hand
from dptr.cache.workspace import Workspace
from dptr.trainer.choices import ReadingPrecision, Tracker
from dptr.trainer.commands.starts import model_path

if TYPE_CHECKING:
    from dptr.cache.crops.dataset import WordImages
    from dptr.cache.text.charset import Charset
    from dptr.cache.text.normalization import Normalization
    from dptr.trainer.recipe import Recipe, TrainingSettings
    from dptr.trainer.training.runs import Trained

RecipeName = Annotated[str, typer.Option("--recipe", help="tiny, small, paper, or a TOML file.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Total optimiser steps.")]
Seed = Annotated[int | None, typer.Option(min=0, max=LARGEST_SEED, help="Seed of everything random.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="Set a recipe key: section.key=value; repeatable.")]
Yes = Annotated[bool, typer.Option("--yes", help="Train on a CPU although the recipe needs a GPU.")]
Track = Annotated[Tracker | None, typer.Option("--track", help="Also log metrics to this tracker.")]
Data = Annotated[
    list[Path] | None,
    typer.Argument(metavar="DATA", help="Labelled crops: folders, LMDB, Parquet, tar or label files."),
]
DataOption = Annotated[list[Path] | None, typer.Option("--data", help="Same as DATA; repeatable.")]
CharsetName = Annotated[
    str | None,
    typer.Option("--charset", help="36, 62, 94, a language (ja, ar, …), a file of characters, or several (94+ru)."),
]
UnitsKind = Annotated[
    Units | None,
    typer.Option("--units", help="Unit of a label; grapheme: clusters are collected from the labels."),
]
LexiconFile = Annotated[
    str | None, typer.Option("--lexicon", help="Lexicon, one word a line, for CTC beam search; none: no lexicon.")
]
Arithmetic = Annotated[
    ReadingPrecision, typer.Option("--precision", help="Arithmetic; auto: bf16 on CPUs that support it, else fp32.")
]
RunFolder = Annotated[Path | None, typer.Option("-o", "--out", help="Folder of the run.")]
OutFile = Annotated[Path | None, typer.Option("-o", "--out", help="Output file; default: in the run's folder.")]
RunName = Annotated[str, typer.Argument(help="A run (folder or name) or `newest`.")]
RecogniserFirst = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RUN] DATA", help="A model (default: bundled), then labelled crops."),
]

#: Longer than any label: what is measured is not left out for its length.
_ANY_LENGTH = 1000


def recipe_changes(
    section: str, changes: list[str] | None, steps: int | None, seed: int | None, flags: dict[str, str | None]
) -> list[str]:
    """Fold the short flags into recipe changes; flags come last, so they win."""
    short = {f"{section}.steps": steps, f"{section}.seed": seed, **flags}
    return [*(changes or []), *(f"{key}={json.dumps(value)}" for key, value in short.items() if value is not None)]


def require_gpu(settings: "TrainingSettings", device: str, yes: bool) -> None:
    """Reject to train on a CPU what a recipe sizes for a GPU, unless ``yes``.

    Raises:
        UserError: the device is a CPU.
    """
    if settings.needs_gpu and device == "cpu" and not yes:
        raise UserError(
            f"{settings.steps:,} steps of {settings.batch_size:,} rows are sized for a GPU, and this is a CPU",
            "Train on a GPU, or add --yes to train on this CPU",
        )


def named_data(*lists: Sequence[Path] | None) -> list[Path]:
    """Return the paths of all lists; what lies on object storage is fetched.

    Raises:
        UserError: there are none, one does not exist, or one cannot be fetched.
    """
    paths = [at_hand(path) for given in lists for path in given or ()]
    if not paths:
        raise UserError("no data named", "Give labelled crops: a folder, LMDB, Parquet, tar or label file")
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no {path}", "Name a folder or file with labelled word images")
    return paths


def recogniser_first(workspace: Workspace, names: list[str]) -> tuple[Path, list[str]]:
    """Part arguments into the recogniser that the first may name, the bundled one if it does not, and the rest."""
    from dptr.cache.pictures import IMAGE_SUFFIXES
    from dptr.trainer.model.model_file import BUNDLED

    first = Path(names[0]) if names else None
    if first is None or (first.exists() and first.suffix != SAFETENSORS and not (first / RUN_FILE).is_file()):
        return BUNDLED, names
    # A picture that is not there is reported as such, not as a run.
    if names[0] == "-" or (first.suffix.lower() in IMAGE_SUFFIXES and not first.exists()):
        return BUNDLED, names
    return model_path(workspace, names[0]), names[1:]


def training_normalization(recipe: "Recipe", charset: "Charset", simplified: bool = False) -> "Normalization":
    """Labels as the recipe's decoder can take them, in the charset's normal form, with spaces if it has one.

    Traditional Chinese is ``simplified`` if asked for.
    """
    from dptr.cache.text.normalization import Normalization

    longest = recipe.decoder.max_label_length
    return Normalization.of(charset, max_label_length=longest, simplified=simplified)


def measuring_normalization(charset: "Charset") -> "Normalization":
    """Labels of any length: what a recogniser cannot emit is a mistake, not an exception."""
    from dptr.cache.text.normalization import Normalization

    return Normalization.of(charset, max_label_length=_ANY_LENGTH)


def labels_left_out(images: "WordImages") -> list[str]:
    """Say which labels were rejected or changed, with examples."""
    lines = []
    for what, tally in (("rejected", images.rejected), ("used, but changed", images.changed)):
        examples = tally.examples
        for reason, count in tally.counts.most_common():
            lines.append(f"{what}: {count:,} labels, {reason} (such as {examples[reason][0]})")
    return lines


def crops_for(data: Sequence[Path], run: "Trained") -> "WordImages | None":
    """Open labelled crops with a run's charset, or as written where it has no label of theirs; None without data."""
    from dptr.cache.crops.dataset import WordImages

    if not data:
        return None
    paths = named_data(data)
    try:
        return WordImages.open(paths, run.charset, measuring_normalization(run.charset))
    except UserError:
        # What the recogniser cannot emit is a mistake.
        return WordImages.open_as_written(paths)


def kept_in(workspace: Workspace, run: Path) -> Path:
    """Return the folder that keeps what a run or a model file read."""
    return workspace.models / hub.name_of(run) if run.is_file() else run
