"""Puts every option of every command, every key of a recipe and every message into the pages with a mark for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from typer.main import get_command

sys.path.insert(0, str(Path(__file__).resolve().parent))
from error_messages import messages_page

MARK = "<!-- reference -->"
ERRORS_MARK = "<!-- errors -->"


def on_config(config: Any) -> Any:
    """Called by mkdocs before all else: pages that the menu lacks are put at its end, so that none is out of reach."""
    menu = str(config["nav"])
    lacking = sorted(page.name for page in Path(config["docs_dir"]).glob("*.md") if f"'{page.name}'" not in menu)
    if lacking:
        config["nav"].append({"More": lacking})
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    if ERRORS_MARK in markdown:
        markdown = markdown.replace(ERRORS_MARK, messages_page())
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown


def reference() -> str:
    """Return commands and recipe keys as Markdown."""
    return "\n\n".join([*_commands(), *_sections()])


def _commands() -> list[str]:
    from dptr.cli import app

    group: Any = get_command(app)
    names = [{option.opts[0] for option in command.params} for command in group.commands.values()]
    common = set.intersection(*names)
    said = ", ".join(f"`{name}`" for name in sorted(common))
    parts = ["## Commands", f"All of them take {said} and `--help`."]
    for name, command in sorted(group.commands.items()):
        rows = ["| option | means | default |", "| --- | --- | --- |"]
        for option in command.params:
            if option.opts[0] not in common:
                rows.append(f"| {_names(option)} | {_cell(getattr(option, 'help', '') or '')} | {_default(option)} |")
        said = " ".join((command.help or "").split("Example:")[0].split())
        example = (command.help or "").partition("Example:")[2].strip()
        parts += [
            f"### dptr {name}",
            _cell(said),
            f"```\n{example}\n```",
            *(["\n".join(rows)] if len(rows) > 2 else []),
        ]
    return parts


def _names(option: Any) -> str:
    if option.param_type_name == "argument":
        return f"`{_cell(option.metavar or option.name.upper())}`"
    return ", ".join(f"`{name}`" for name in option.opts)


def _default(option: Any) -> str:
    value = option.default
    return "" if value is None or value is False or callable(value) or option.required else f"`{_cell(str(value))}`"


def _sections() -> list[str]:
    from dptr.trainer.recipe import Recipe

    parts = ["## Recipe keys", "`--set section.key=value` changes any of them."]
    for name, section in Recipe.model_fields.items():
        model = section.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            rows = ["| key | default | may be |", "| --- | --- | --- |"]
            for key, field in model.model_fields.items():
                limits = ", ".join(_cell(str(limit)) for limit in field.metadata)
                kind = getattr(field.annotation, "__name__", str(field.annotation).replace("typing.", ""))
                rows.append(f"| `{key}` | `{field.default}` | {_cell(kind)} {limits} |")
            said = " ".join((model.__doc__ or "").replace("``", "`").split())
            parts += [f"### [{name}]", said, "\n".join(rows)]
    return parts


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
