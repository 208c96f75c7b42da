"""A report's page: what it shows as plain values, its charts, and the one file that a template renders, escaped.

matplotlib draws the charts as SVG in placeholder colours, which are then exchanged for CSS variables: the same picture
serves a light and a dark page. Texts stay text, in the page's own font.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
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


Points = Sequence[tuple[float, float]]

_SIZE = (5.2, 3.2)  # inches of 72 units: small enough that its texts stay legible on a telephone's screen
_INK, _LINE = "#0a0b0c", "#0d0e0f"
_SERIES = ("#a00001", "#a00002", "#a00003", "#a00004", "#a00005", "#a00006")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))
_VARIABLES = {
    _INK: "var(--ink)",
    _LINE: "var(--line)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, 1)},
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


def line_chart(
    title: str, series: Mapping[str, Points], unit: str, share: bool = False, logarithmic: bool = False
) -> Markup | None:
    """Draw values over optimiser steps.

    Args:
        title: what a screen reader says. series: name -> (step, value); values that are not finite are left out.
        unit: label of the upright axis. share: values lie between 0 and 1 and are shown in per cent.

    Returns:
        The SVG, or None when no series has a point to draw.
    """
    lines = {name: _finite(points, logarithmic) for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if len(points)}
    if not lines:
        return None

    def draw(axes: Axes) -> None:
        for number, (name, points) in enumerate(lines.items()):
            # Dashes distinguish lines that cover each other, and all of them without colours.
            colour, dashes = _SERIES[number % len(_SERIES)], _DASHES[number % len(_DASHES)]
            # One point alone makes no line; a later one that covers it is smaller.
            marker, size = ("o" if len(points) < 2 else None), max(9 - 2 * number, 3)
            axes.plot(
                points[:, 0], points[:, 1], color=colour, linestyle=dashes, label=name, marker=marker, markersize=size
            )
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if logarithmic:
            _powers_of_ten(axes)
        else:
            if share:
                axes.set_ylim(0, 1)
            elif max(points[:, 1].max() for points in lines.values()) > 0:
                axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_formatter(FuncFormatter(_per_cent if share else _plain))
        if len(lines) > 1:
            _legend_above(axes)

    return _svg(title, draw)


def _svg(title: str, draw: Callable[[Axes], None]) -> Markup:
    """Draw into a figure of its own and return the bare ``<svg>`` element."""
    # The salt makes ids that are the same at every writing, and other ones for each chart of a page.
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        draw(figure.add_subplot())
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    drawn = stream.getvalue()
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r'<g id="[^"]*">', "<g>", drawn)
    for placeholder, variable in _VARIABLES.items():
        drawn = drawn.replace(placeholder, variable)
    box = re.search(r'viewBox="[^"]*"', drawn)
    if box is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    inside = drawn[drawn.index(">", box.end()) + 1 :]
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" aria-label="{html.escape(title)}">'
    return Markup(head + inside)  # matplotlib escapes the texts that it writes


def _finite(points: Points, positive: bool) -> NDArray[np.float64]:
    values = np.array(points, np.float64).reshape(-1, 2)
    kept = np.isfinite(values).all(1) & ((values[:, 1] > 0) | (not positive))
    return values[kept]


def _powers_of_ten(axes: Axes) -> None:
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps: tuple[float, ...] = (1.0,) if high / low > 1e4 else (1.0, 2.0, 5.0)
    if high / low < 10:
        steps = tuple(float(step) for step in range(1, 10))
    axes.yaxis.set_major_locator(LogLocator(10, steps))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_plain))


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, handlelength=2)


def _plain(value: float, _: object) -> str:
    return f"{value:,.10g}"


def _per_cent(value: float, _: object) -> str:
    return f"{100 * value:g} %"
