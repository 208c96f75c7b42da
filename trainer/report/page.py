"""The pieces of a report: one HTML page that needs nothing beside itself, charts as SVG, pictures inline."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

from PIL import Image

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT, _MARGIN = 640, 260, 48
_COLOURS = ("#1b6ca8", "#d1495b", "#3f8f4f", "#8d6cab", "#c98a1b")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1c2530 }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #d5dbe1 }
table { border-collapse: collapse } th, td { text-align: left; padding: .25rem .9rem .25rem 0; vertical-align: middle }
th { font-weight: 600; color: #56626f } td.wrong { color: #b3263a } p.note { color: #56626f; max-width: 44rem }
svg text { font: 12px system-ui, sans-serif; fill: #56626f } img { image-rendering: pixelated }
div.charts { display: flex; flex-wrap: wrap; gap: 1.5rem }
"""


def page(title: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return a whole page; each section is a heading and its HTML."""
    body = "".join(f"<h2>{html.escape(heading)}</h2>\n{content}\n" for heading, content in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}</body></html>\n"
    )


def note(text: str) -> str:
    """A paragraph that explains."""
    return f'<p class="note">{html.escape(text)}</p>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells that start with ``<`` are HTML already."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    lines = ["".join(_cell(value) for value in row) for row in rows]
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def wrong(text: str) -> str:
    """A table cell's text, marked as a mistake."""
    return f'<td class="wrong">{html.escape(text)}</td>'


def picture(image: Image.Image, height: int) -> str:
    """An image inside the page, ``height`` pixels high on screen."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    encoded = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="" height="{height}" src="data:image/png;base64,{encoded}">'


def line_chart(title: str, series: Mapping[str, Points], logarithmic: bool = False) -> str:
    """Lines over steps; with ``logarithmic``, values go by their powers of ten."""
    lines = {name: points for name, points in series.items() if points}
    frame = _Frame([point for points in lines.values() for point in points], logarithmic)
    drawn = []
    for (name, points), colour in zip(lines.items(), _COLOURS, strict=False):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        drawn.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{path}"/>')
        drawn.append(_legend(len(drawn) // 2, name, colour))
    return _chart(title, frame, drawn)


def scatter(title: str, groups: Mapping[str, Points]) -> str:
    """Groups of points in one plane."""
    frame = _Frame([point for points in groups.values() for point in points], logarithmic=False)
    drawn = []
    for index, ((name, points), colour) in enumerate(zip(groups.items(), _COLOURS, strict=False)):
        drawn += [
            f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.2" fill="{colour}" fill-opacity=".55"/>'
            for x, y in points
        ]
        drawn.append(_legend(index, name, colour))
    return _chart(title, frame, drawn)


class _Frame:
    """Maps values to pixels."""

    def __init__(self, points: Points, logarithmic: bool) -> None:
        self._logarithmic = logarithmic
        xs, ys = [x for x, _ in points], [self._scaled(y) for _, y in points]
        self.left, self.right = _widened(min(xs), max(xs))
        self.bottom, self.top = _widened(min(ys), max(ys))

    def _scaled(self, y: float) -> float:
        return math.log10(max(y, 1e-12)) if self._logarithmic else y

    def x(self, value: float) -> float:
        return _MARGIN + (value - self.left) / (self.right - self.left) * (_WIDTH - 2 * _MARGIN)

    def y(self, value: float) -> float:
        share = (self._scaled(value) - self.bottom) / (self.top - self.bottom)
        return _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)

    def marks(self) -> list[str]:
        """Labels at the ends of both axes."""
        low, high = (10**value if self._logarithmic else value for value in (self.bottom, self.top))
        bottom, left = _HEIGHT - _MARGIN, _MARGIN
        return [
            f'<path d="M{left} {_MARGIN}V{bottom}H{_WIDTH - _MARGIN}" fill="none" stroke="#c3cad1"/>',
            f'<text x="{left - 6}" y="{bottom}" text-anchor="end">{low:.3g}</text>',
            f'<text x="{left - 6}" y="{_MARGIN + 8}" text-anchor="end">{high:.3g}</text>',
            f'<text x="{left}" y="{bottom + 16}">{self.left:g}</text>',
            f'<text x="{_WIDTH - _MARGIN}" y="{bottom + 16}" text-anchor="end">{self.right:g}</text>',
        ]


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _legend(index: int, name: str, colour: str) -> str:
    x = _MARGIN + 12 + 170 * index
    return (
        f'<rect x="{x}" y="{_HEIGHT - 18}" width="10" height="10" fill="{colour}"/>'
        f'<text x="{x + 15}" y="{_HEIGHT - 9}">{html.escape(name)}</text>'
    )


def _chart(title: str, frame: _Frame, drawn: Sequence[str]) -> str:
    head = f'<text x="{_MARGIN}" y="24" style="font-weight:600">{html.escape(title)}</text>'
    content = "".join([head, *frame.marks(), *drawn])
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}">{content}</svg>'


def _cell(value: str) -> str:
    if value.startswith("<td"):
        return value
    return f"<td>{value if value.startswith('<') else html.escape(value)}</td>"
