"""A model on the Hugging Face hub: its file, its card and its recipe in one commit."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined

from dptr.cache import hub
from dptr.cache.errors import UserError
from dptr.cache.file_names import (
    METRICS_FILE,
    PREDICTIONS_FOLDER,
    RECIPE_FILE,
    RUN_FILE,
    VALIDATION_WORDS,
    WEIGHTS_FILE,
)
from dptr.cache.printing import visible
from dptr.cache.progress import note
from dptr.cache.stores import checksummed as checksummed
from dptr.trainer.export import export
from dptr.trainer.metrics import wilson
from dptr.trainer.recipe import recipe_to_toml
from dptr.trainer.report import flat
from dptr.trainer.training import step_log
from dptr.trainer.training.runs import Run, Trained

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

#: What a repository holds.
FILES = (WEIGHTS_FILE, _CARD := "README.md", RECIPE_FILE)
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#!~&$@])")


class Figure(NamedTuple):
    """Case-sensitive word accuracy on a data set with its 95 % interval."""

    data: str
    words: int
    accuracy: float
    interval: tuple[float, float]


def write_files(model: Trained, repo: str, predictions: Path, out: Path, licence: str | None, half: bool) -> None:
    """Write :data:`FILES`, what a repository holds, into a folder.

    Args:
        model: a recogniser, or a pre-trained decoder. repo: its hub id.
        predictions: the folder that holds what ``dptr evaluate`` read with it.
        out: the folder. licence: its identifier on the hub. half: floats in 16 bits.

    Raises:
        UserError: ``repo`` is no hub id.
    """
    if not hub.is_id(repo) or "@" in repo:
        raise UserError(f"{repo} is not a hub name", "Give USER/MODEL")
    export(model, "safetensors", out / WEIGHTS_FILE, half=half)
    (out / _CARD).write_text(model_card(model, repo, predictions, licence), encoding="utf-8")
    (out / RECIPE_FILE).write_text(recipe_to_toml(model.recipe), encoding="utf-8")


def push(
    model: Trained,
    repo: str,
    predictions: Path,
    private: bool = False,
    licence: str | None = None,
    half: bool = False,
    token: str | bool | None = None,
    message: str | None = None,
) -> CommitInfo:
    """Make the repository where it is not there, and put the model into it; arguments as of :func:`write_files`.

    Raises:
        UserError: as :func:`write_files`; or the hub cannot be reached, or does not take it.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory(prefix="dptr-push-") as folder:
        write_files(model, repo, predictions, Path(folder), licence, half)
        note(f"pushing {sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6:.1f} MB to {repo}")
        api = HfApi(token=token, library_name="dptr")
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            message = message or f"{model.name}, pushed by dptr"
            return api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
        # What a proxy, an endpoint or a setting can raise here belongs to the client's own libraries.
        except Exception as error:
            raise UserError(
                f"uploading {repo} failed: {hub.first_line(error)}",
                "Log in with a token that may write (`hf auth login`, or HF_TOKEN), and check the network",
            ) from error


def model_card(model: Trained, repo: str, folder: Path, licence: str | None = None) -> str:
    """Return a model's page as Markdown with the hub's header; arguments as of :func:`write_files`."""
    figures = list(_measured(folder))
    versions = checksummed.read_json(model.folder / RUN_FILE).get("versions", {}) if isinstance(model, Run) else {}
    environment = Environment(
        loader=PackageLoader("dptr.trainer", "."),
        autoescape=False,  # Markdown; what comes from data passes the filter `cell`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = table_cell
    return environment.get_template("card.md.jinja").render(
        header=_header(model, repo, figures, licence),
        name=repo.rpartition("/")[2],
        repo=repo,
        model=model,
        characters="".join(model.charset.characters),
        figures=figures,
        validation=_best_validation(model),
        data=flat(model.data).items(),
        recipe=recipe_to_toml(model.recipe).strip(),
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
    )


def table_cell(text: object) -> str:
    """Return a text for a cell of a Markdown table, where it is text alone: no markup, HTML, link or line break."""
    return _MARKDOWN.sub(lambda found: f"&#{ord(found[1])};", visible(str(text)))


def _measured(folder: Path) -> Iterator[Figure]:
    """Yield the figures of each data set that was read, by name; folders above it are not named."""
    for path in sorted((folder / PREDICTIONS_FOLDER).glob("*.parquet")):
        rows = pq.read_table(path, columns=["data", "correct"])
        correct = [value for value in rows["correct"].to_pylist() if value is not None]
        name = rows["data"][0].as_py() if len(rows) else ""
        if correct and name != VALIDATION_WORDS:
            words, right = len(correct), sum(correct)
            yield Figure(Path(name).name or name, words, right / words, wilson(right, words))


def _header(model: Trained, repo: str, figures: list[Figure], licence: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-to-text",
            dataset_type=figure.data,
            dataset_name=figure.data,
            metric_type="accuracy",
            metric_name="word accuracy, case-sensitive",
            metric_value=round(figure.accuracy, 4),
        )
        for figure in figures
    ]
    data = ModelCardData(
        library_name="dptr",
        license=licence,
        pipeline_tag="image-to-text" if model.kind == "finetune" else None,
        tags=["dptr", "ocr", "scene-text-recognition"],
        model_name=repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _best_validation(model: Trained) -> dict[str, Any] | None:
    """Return the logged step of highest validation accuracy; None where there is none."""
    if not isinstance(model, Run):
        return None
    lines = [line for line in step_log.read(model.folder / METRICS_FILE)[0] if "validation_accuracy" in line]
    return max(lines, key=lambda line: float(line["validation_accuracy"]), default=None)
