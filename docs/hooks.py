"""Hooks of mkdocs: the generated reference, the README as home page, and pages from the repository's root."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from typer.main import get_command

sys.path.insert(0, str(Path(__file__).resolve().parent))
from error_messages import messages_page

ROOT = Path(__file__).resolve().parents[1]
MARK = "<!-- reference -->"
ERRORS_MARK = "<!-- errors -->"
README_MARK = "<!-- readme -->"
#: Pages of the site that are files of the repository's root.
FROM_ROOT = {"contributing.md": "CONTRIBUTING.md", "changes.md": "CHANGELOG.md"}


def on_config(config: Any) -> Any:
    """Add version and repository, and put pages that the menu lacks at its end."""
    import dptr

    config["site_name"] = f"dptr {dptr.__version__}"
    menu = str(config["nav"])
    lacking = sorted(page.name for page in Path(config["docs_dir"]).glob("*.md") if f"'{page.name}'" not in menu)
    if lacking:
        config["nav"].append({"More": lacking})
    if address := repository(_origin()):
        config["nav"].append({"Repository": address})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that come from the repository's root."""
    from mkdocs.structure.files import File

    for name, source in FROM_ROOT.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what is generated, and turn links to files of the root into links of the site."""
    if README_MARK in markdown:
        readme = (ROOT / "README.md").read_text(encoding="utf-8").removeprefix("# dptr\n")
        markdown = markdown.replace(README_MARK, readme.strip())
    if ERRORS_MARK in markdown:
        markdown = markdown.replace(ERRORS_MARK, messages_page())
    if MARK in markdown:
        markdown = markdown.replace(MARK, reference())
    markdown = markdown.replace("](docs/", "](").replace("](CITATION.cff)", "](index.md#cite)")
    for name, source in FROM_ROOT.items():
        markdown = markdown.replace(f"]({source}", f"]({name}").replace(f"](../{source}", f"]({name}")
    return markdown


def repository(origin: str) -> str | None:
    """Return the web address of a Git remote, without credentials; None where it has none."""
    found = re.fullmatch(r"(?:https?://|ssh://|git@)(?:[^/@]*@)?([\w.-]+)[:/](.+?)(?:\.git)?/?", origin)
    return f"https://{found[1]}/{found[2]}" if found else None


def _origin() -> str:
    asked = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def reference() -> str:
    """Return commands, recipe keys, SQL views and the Python API as Markdown."""
    return "\n\n".join([*_commands(), *_sections(), *_views(), *_python()])


def _commands() -> Iterator[str]:
    from dptr.cli import app

    group: Any = get_command(app)
    names = [{option.opts[0] for option in command.params} for command in group.commands.values()]
    common = set.intersection(*names)
    listed = ", ".join(f"`{name}`" for name in sorted(common))
    yield "## Commands"
    yield f"All commands take {listed} and `--help`."
    for name, command in sorted(group.commands.items()):
        rows = ["| option | description | default |", "| --- | --- | --- |"]
        for option in command.params:
            if option.opts[0] not in common:
                rows.append(f"| {_names(option)} | {_cell(getattr(option, 'help', '') or '')} | {_default(option)} |")
        description, _, example = (command.help or "").partition("Example:")
        yield f"### dptr {name}"
        yield _cell(description)
        yield f"```\n{example.strip()}\n```"
        if len(rows) > 2:
            yield "\n".join(rows)


def _names(option: Any) -> str:
    if option.param_type_name == "argument":
        return f"`{_cell(option.metavar or option.name.upper())}`"
    return ", ".join(f"`{name}`" for name in option.opts)


def _default(option: Any) -> str:
    value = option.default
    return "" if value is None or value is False or callable(value) or option.required else f"`{_cell(str(value))}`"


def _sections() -> Iterator[str]:
    from dptr.trainer.recipe import Recipe, allowed

    yield "## Recipe keys"
    yield "`--set section.key=value` changes any of them."
    for name, section in Recipe.model_fields.items():
        model = section.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            rows = ["| key | default | values | description |", "| --- | --- | --- | --- |"]
            for key, field in model.model_fields.items():
                values = _cell(allowed(field).removeprefix("one of: "))
                rows.append(f"| `{key}` | `{field.default}` | {values} | {_cell(field.description or '')} |")
            yield f"### [{name}]"
            yield _markdown(model)
            yield "\n".join(rows)


def _views() -> Iterator[str]:
    from dptr.cache import rejections
    from dptr.cache.stores import image_features, neighbours, orp, prompts
    from dptr.trainer import evaluate

    schemas = {
        "prompts": prompts.CATALOGUE_SCHEMA,
        "crops": orp.CATALOGUE_SCHEMA,
        "image_features": image_features.CATALOGUE_SCHEMA,
        "neighbours": neighbours.TABLE_SCHEMA,
        "predictions": evaluate.PREDICTIONS,
        "rejected_text, rejected_photos, rejected_crops, rejected_words": rejections.SCHEMA,
    }
    yield "## SQL views"
    yield (
        "Views of `dptr sql`. `prompts`, `crops` and `image_features` also have `pooled`, `predictions` has `run`; "
        "`runs` and `metrics` have the keys of `run.json` and `metrics.jsonl`."
    )
    rows = ["| view | columns |", "| --- | --- |"]
    for name, schema in schemas.items():
        rows.append(f"| `{name}` | {', '.join(f'`{column}`' for column in schema.names)} |")
    yield "\n".join(rows)


def _python() -> Iterator[str]:
    import dptr

    yield "## Python API"
    for name in dptr.__all__:
        thing = getattr(dptr, name)
        if not callable(thing):
            continue
        yield f"### dptr.{name}"
        yield f"```python\n{_signature(name, thing)}\n```"
        yield _markdown(thing)
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            for method, function in inspect.getmembers(thing, inspect.isfunction):
                if not method.startswith("_") and function.__doc__:
                    yield f"`{method}{_arguments(function)}`: {_markdown(function).partition(chr(10))[0]}"


def _signature(name: str, thing: Any) -> str:
    arguments = _arguments(thing)
    if len(arguments) > 80:
        parts = [f"    {part}," for part in re.split(r", (?![^\[]*\])", arguments[1:-1])]
        arguments = "\n".join(["(", *parts, ")"])
    return f"{'class ' if inspect.isclass(thing) else ''}{name}{arguments}"


def _arguments(function: Any) -> str:
    """Return parameters with their defaults; types are in the docstring."""
    signature = inspect.signature(function)
    parts = [part.replace(annotation=inspect.Parameter.empty) for part in signature.parameters.values()]
    kept = [part for part in parts if part.name != "self"]
    return str(signature.replace(parameters=kept, return_annotation=inspect.Signature.empty))


def _markdown(thing: Any) -> str:
    """Return a docstring as Markdown: reStructuredText's roles and double backticks become code."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", inspect.getdoc(thing) or "").replace("``", "`")
    summary, *blocks = re.split(r"\n(?=Args:|Attributes:|Raises:|Returns:)", text)
    lines = [" ".join(summary.split())]
    for block in blocks:
        title, _, body = block.partition("\n")
        items = re.sub(r"\n\s{8,}", " ", body).splitlines()
        lines.append(f"\n{title}\n\n" + "\n".join(f"- {item.strip()}" for item in items if item.strip()))
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
