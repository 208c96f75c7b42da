"""A report's page: what it shows as plain values, and the one file that a template with escaping makes of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

_THUMBNAIL = (320, 64)


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a text or a picture.

    Attributes:
        text: shown as it is, never as HTML. wrong: marks a mistake. picture: a ``data:`` address.
        height: of the picture on screen, in pixels. described: what a screen reader says of the picture.
    """

    text: str = ""
    wrong: bool = False
    picture: str = ""
    height: int = 40
    described: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells below a title and column names; without names the first cell of each row names it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Chart:
    """A drawing with what is written below it."""

    drawing: Markup
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page, shown in this order: note, charts, tables."""

    title: str
    note: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = field(default_factory=tuple)


def render(title: str, headline: str, summary: str, sections: Sequence[Section]) -> str:
    """Return the whole page, with the result and a sentence on it first; texts are escaped, and it loads no file."""
    environment = Environment(
        loader=PackageLoader("dptr.trainer.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        title=title, headline=headline, summary=summary, sections=sections
    )


def text_row(*values: object) -> list[Cell]:
    """A row of texts."""
    return [Cell(str(value)) for value in values]


def picture_address(image: Image.Image) -> str:
    """Return an image, made no larger than it is shown, as a ``data:`` address."""
    small = image.copy()
    small.thumbnail(_THUMBNAIL)
    stream = io.BytesIO()
    small.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
