"""Words of a page by their boxes: files of boxes in the forms that people have, and quadrilaterals made upright."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dptr.cache.errors import UserError

Corner = tuple[float, float]
_FORMS = "Give JSON, CSV with a header, or ICDAR's lines: x1,y1,x2,y2,x3,y3,x4,y4 or left,top,right,bottom, and a text"
#: Names of columns or keys, in the order of a box's numbers.
_EIGHT = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")
_EDGES = ("left", "top", "right", "bottom")
_SIZED = ("x", "y", "width", "height")
_LEAST_SIDE = 2.0
_LARGEST_SIDE = 8192


@dataclass(frozen=True)
class Box:
    """A word on a page: its corners in pixels, clockwise from where its text begins at the top; ``number`` from 1."""

    number: int
    corners: tuple[Corner, Corner, Corner, Corner]

    def cut_from(self, page: Image.Image) -> Image.Image:
        """Return the word upright, as wide and high as its longer sides; what lies outside the page is black.

        Raises:
            UserError: the corners enclose nothing that could be read, or cross over.
        """
        points = np.array(self.corners)
        sides = np.linalg.norm(np.roll(points, -1, axis=0) - points, axis=1)
        width, height = max(sides[0], sides[2]), max(sides[1], sides[3])
        turns = [_turn(points[i], points[(i + 1) % 4], points[(i + 2) % 4]) for i in range(4)]
        on_page = (points.max(0) > 0).all() and (points.min(0) < page.size).all()
        is_large_enough = min(width, height) >= _LEAST_SIDE and max(width, height) <= _LARGEST_SIDE
        if not (on_page and is_large_enough and min(turns) > 0):
            raise UserError(f"box {self.number} encloses no word", "Give corners on the page, clockwise from top left")
        size = (max(1, round(width)), max(1, round(height)))
        return page.transform(size, Image.Transform.PERSPECTIVE, _perspective(points, size), Image.Resampling.BICUBIC)


def read_boxes(path: Path) -> list[Box]:
    """Read a file of boxes: JSON, CSV with a header, or ICDAR's text lines, recognised by its content.

    Raises:
        UserError: it cannot be read, or a line holds no box.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = _from_json(json.loads(text)) if path.suffix.lower() == ".json" else _from_lines(text)
    except (OSError, ArithmeticError, ValueError, LookupError, TypeError, RecursionError, csv.Error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as boxes ({reason})", _FORMS) from error
    if not found:
        raise UserError(f"{path} holds no box", _FORMS)
    return [Box(number, _corners(numbers)) for number, numbers in enumerate(found, 1)]


def _from_json(value: Any) -> list[list[float]]:
    """A list of boxes, alone or below a key: lists of numbers, lists of corners, or objects with either."""
    if isinstance(value, dict):
        value = next((entry for entry in value.values() if isinstance(entry, list)), [])
    return [_numbers(entry) for entry in value]


def _numbers(entry: Any) -> list[float]:
    if isinstance(entry, dict):
        for name in ("points", "corners", "polygon", "box", "bbox"):
            if name in entry:
                return _numbers(entry[name])
        return _named(entry)
    flat = [number for part in entry for number in (part if isinstance(part, list) else [part])]
    return _checked([float(number) for number in flat])


def _from_lines(text: str) -> list[list[float]]:
    rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if row]
    if rows and not _is_number(rows[0][0]) and {name.strip().lower() for name in rows[0]} & {"x", "x1", "left"}:
        names = [name.strip().lower() for name in rows[0]]
        return [_named(dict(zip(names, row, strict=False))) for row in rows[1:]]
    return [_leading(row if len(row) > 1 else row[0].split()) for row in rows]


def _named(entry: dict[str, Any]) -> list[float]:
    if "x4" in entry:
        return _checked([float(entry[name]) for name in _EIGHT])
    if "width" in entry:
        x, y, width, height = (float(entry[name]) for name in _SIZED)
        return _checked([x, y, x + width, y + height])
    return _checked([float(entry[name]) for name in (_EDGES if "left" in entry else _EIGHT[:4])])


def _leading(row: Sequence[str]) -> list[float]:
    """The numbers that a line begins with: eight, or four; the text behind them, maybe a number, is passed over."""
    count = 8 if len(row) >= 8 and all(map(_is_number, row[:8])) else 4
    return _checked([float(number) for number in row[:count]])


def _checked(numbers: list[float]) -> list[float]:
    if len(numbers) not in (4, 8) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{len(numbers)} numbers are no box: {numbers}"[:120])
    return numbers


def _corners(numbers: Sequence[float]) -> tuple[Corner, Corner, Corner, Corner]:
    if len(numbers) == 4:
        left, top, right, bottom = numbers
        return (left, top), (right, top), (right, bottom), (left, bottom)
    a, b, c, d = zip(numbers[::2], numbers[1::2], strict=True)
    return a, b, c, d


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _turn(before: Any, at: Any, after: Any) -> float:
    """Twice the area that two sides span; positive where they turn clockwise, as y grows downwards."""
    one, other = at - before, after - at
    return float(one[0] * other[1] - one[1] * other[0])


def _perspective(points: Any, size: tuple[int, int]) -> tuple[float, ...]:
    """The eight coefficients that take a pixel of the upright word to its place on the page."""
    targets = [(0, 0), (size[0], 0), size, (0, size[1])]
    rows, places = [], []
    for (u, v), (x, y) in zip(targets, points.tolist(), strict=True):
        rows += [[u, v, 1, 0, 0, 0, -u * x, -v * x], [0, 0, 0, u, v, 1, -u * y, -v * y]]
        places += [x, y]
    return tuple(np.linalg.solve(np.array(rows, float), np.array(places)).tolist())
