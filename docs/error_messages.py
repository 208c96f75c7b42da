"""All error messages of commands with their advice, extracted from the source for the page of messages."""

from __future__ import annotations

import ast
import html
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_CLASSES = {"UserError": 2, "NotLabelled": 2, "DamagedStore": 3, "TooManyRejected": 4}
#: Folder or file of the source -> heading of its messages; the first match counts.
_PLACES = {
    "cli.py": "Any command",
    "cache/command_line.py": "Any command",
    "cache/workspace.py": "Any command",
    "cache/errors.py": "Any command",
    "cache/processes.py": "Any command",
    "cache/sql.py": "Queries: `sql`",
    "cache/commands.py": "Queries and checks: `sql`, `verify`, `pack-crops`",
    "cache/stores": "Stores, runs and models on disk",
    "cache/crops": "Labelled crops",
    "cache/hub.py": "The Hugging Face Hub",
    "cache": "Charsets, labels and pictures",
    "pipeline/first_look.py": "Get started: `doctor`, `init`",
    "pipeline/text": "Text: `embed-text`",
    "pipeline/photos": "Photos: `build-orp-bank`, `mine-neighbours`",
    "pipeline/embed_crops.py": "Image features: `embed-crops`",
    "pipeline/rendering": "Rendering: `render-words`, `demo`",
    "pipeline/clip": "CLIP models",
    "pipeline": "Stage 1",
    "trainer/export.py": "Export: `export`, `push`",
    "trainer/push.py": "Export: `export`, `push`",
    "trainer/report.py": "Reports: `report`",
    "trainer/model": "Recognisers, decoders and encoders",
    "trainer": "Training and reading: `pretrain`, `finetune`, `evaluate`, `read`",
}


def messages_page() -> str:
    """Return tables of messages and advice as Markdown, by topic."""
    found: dict[str, list[str]] = {title: [] for title in _PLACES.values()}
    for path in _sources():
        rows = found[_title(path)]
        rows += [row for row in _rows(path) if row not in rows]
    head = "| message | advice | exit code |\n| --- | --- | --- |"
    return "\n\n".join(f"## {title}\n\n{head}\n" + "\n".join(rows) for title, rows in found.items() if rows)


def _sources() -> list[Path]:
    folders = ("cache", "pipeline", "trainer")
    return [ROOT / "cli.py", *(path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))]


def _title(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    return next(title for place, title in _PLACES.items() if name == place or name.startswith(f"{place}/"))


def _rows(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module = ".".join(("dptr", *path.relative_to(ROOT).with_suffix("").parts))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CLASSES:
            parts = [" ".join(_text(argument, module).split()) for argument in node.args[:2]]
            # Messages that only pass on another error's text are skipped.
            if parts and re.sub("<var>.*?</var>|…", "", parts[0]).strip(" :;,./"):
                said, advice = [*parts, ""][:2]
                yield f"| {_cell(said)} | {_cell(advice)} | {_CLASSES[node.func.id]} |"


def _text(node: ast.expr, module: str) -> str:
    """Return an expression's text, with a name or three dots for variable parts."""
    match node:
        case ast.Constant(value=constant):
            return html.escape(str(constant), quote=False)
        case ast.JoinedStr(values=values):
            return "".join(_text(part, module) for part in values)
        case ast.FormattedValue(value=inner):
            return _text(inner, module)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left, module) + _text(right, module)
        case ast.IfExp(body=one, orelse=other):
            return " / ".join(text for text in (_text(one, module), _text(other, module)) if text)
        case ast.Name(id=name) if name.isupper() or name.startswith("_"):
            known = getattr(importlib.import_module(module), name, None)
            return html.escape(str(known), quote=False) if isinstance(known, str | int | float) else "…"
        case ast.Attribute(value=ast.Name(id=holder), attr=name) if name.isupper() and holder != "self":
            return html.escape(str(getattr(getattr(importlib.import_module(module), holder), name)), quote=False)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return f"<var>{name.strip('_').replace('_', ' ')}</var>"
    return "…"


def _cell(text: str) -> str:
    # Within code spans there is no markup, so names are in capitals.
    spans = [re.sub("<var>(.*?)</var>", lambda found: found[1].upper(), span) for span in re.findall("`.*?`", text)]
    rest = [part.replace("*", "\\*").replace("[", "\\[") for part in re.split("`.*?`", text)]
    whole = "".join(part + span for part, span in zip(rest, [*spans, ""], strict=True))
    return whole.replace("|", "\\|")
