"""``dptr read`` over many pictures and over pages with boxes: predictions in order, written to a file as they come.

Boxes of words are JSON (a list, COCO, PaddleOCR) or ICDAR's lines; quadrilaterals are made upright.
"""

from __future__ import annotations

import csv
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dptr.cache.errors import UserError
from dptr.cache.printing import plain_json
from dptr.cache.progress import note
from dptr.cache.stores.files import atomic_path
from dptr.trainer.model.recognizer import Prediction
from dptr.trainer.read import Reader, open_picture

Row = dict[str, Any]
#: A picture's name, and a function that opens it.
Source = tuple[Row, Callable[[], Image.Image]]

SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        ("box", pa.int64()),  # which of the page's boxes, from 1; null for a picture of one word
        ("corners", pa.list_(pa.list_(pa.float64()))),
        ("text", pa.string()),
        ("confidence", pa.float64()),
        ("character_confidences", pa.list_(pa.float64())),
    ]
)
_ROWS_A_GROUP = 4096
#: Pixels of the shorter side from which a picture may be a page, the confidence from which it is none, and how many
#: pages are named.
_PAGE_SIDE, _PAGE_CONFIDENCE, _PAGES_NAMED = 200, 0.5, 3


def pictures(files: Iterable[Path | UserError]) -> Iterator[Source]:
    """Return pictures of one word each as sources."""
    for found in files:
        if isinstance(found, UserError):
            yield {}, partial(_raise, found)
        else:
            yield {"image": str(found)}, partial(open_picture, found)


def words_of_page(page: Path, boxes: Path) -> Iterator[Source]:
    """Yield the words of a page, cut out by their boxes and made upright.

    Raises:
        UserError: page or boxes cannot be read.
    """
    picture = open_picture(page)
    for box in read_boxes(boxes, page.name):
        yield {"image": str(page), "box": box.number, "corners": box.corners}, partial(box.cut_from, picture)


def read_rows(
    reader: Reader, sources: Iterable[Source], problems: list[str], batch_size: int | None = None
) -> Iterator[Row]:
    """Yield a row for each picture that can be read, in order; memory holds a few batches.

    What keeps others from being read goes to ``problems``.

    Raises:
        UserError: there is no picture, or none can be read.
    """
    read = 0
    for described, found in _found_in(reader, sources, batch_size):
        if isinstance(found, UserError):
            problems.append(f"{found}")
        else:
            read += 1
            yield {**described, **vars(found)}
    if not read and not problems:
        raise UserError("no image named", "Name pictures of one word each, or folders of them")
    if not read:
        raise UserError(f"none of {len(problems)} images could be read: {problems[0]}")


def _found_in(
    reader: Reader, sources: Iterable[Source], batch_size: int | None
) -> Iterator[tuple[Row, Prediction | UserError]]:
    """Yield each source's description, in order, with its reading or what keeps it from being read."""
    waiting: deque[tuple[Row, list[int]]] = deque()
    pages = 0

    def openers() -> Iterator[Callable[[], Image.Image]]:
        for described, opener in sources:
            size: list[int] = []
            waiting.append((described, size))
            yield partial(_measured, opener, size)

    for found in reader.read_opened(openers(), batch_size):
        described, size = waiting.popleft()
        if isinstance(found, Prediction) and looks_like_page(size, found):
            pages += 1
            if pages <= _PAGES_NAMED:
                note(f"{described['image']} looks like a page, not a word or line: cut its words out, or give --boxes")
        yield described, found
    if pages > _PAGES_NAMED:
        note(f"{pages - _PAGES_NAMED:,} more look like pages")


def looks_like_page(size: Sequence[int], prediction: Prediction) -> bool:
    """Return whether a picture of that (width, height) is too large and too doubtful to show one word or line."""
    width, height = size
    doubtful = prediction.confidence < _PAGE_CONFIDENCE or not prediction.text
    return doubtful and min(width, height) >= _PAGE_SIDE and width < 4 * height


def _measured(opener: Callable[[], Image.Image], size: list[int]) -> Image.Image:
    """Open a picture and put its width and height into ``size``."""
    picture = opener()
    size.extend(picture.size)
    return picture


def write_rows(out: Path, rows: Iterable[Row]) -> None:
    """Write rows one by one to CSV, JSON lines or Parquet, by the file's suffix, atomically.

    CSV has the columns of :data:`SCHEMA`, lists as JSON.

    Raises:
        UserError: the ending is another.
    """
    if out.suffix.lower() == ".parquet":
        waiting = iter(rows)
        with atomic_path(out) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            while group := list(islice(waiting, _ROWS_A_GROUP)):
                writer.write_table(pa.Table.from_pylist([_unicode(row) for row in group], SCHEMA))
        return
    newline = "" if out.suffix.lower() == ".csv" else None
    with (
        atomic_path(out) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline=newline) as stream,
    ):
        if out.suffix.lower() == ".csv":
            table = csv.DictWriter(stream, SCHEMA.names, lineterminator="\n")
            table.writeheader()
            table.writerows(
                {name: plain_json(value) if isinstance(value, list) else value for name, value in row.items()}
                for row in rows
            )
            return
        stream.writelines(plain_json(row) + "\n" for row in rows)


def require_form(out: Path) -> None:
    """Raise :class:`UserError` unless :func:`write_rows` supports a file's suffix."""
    if out.suffix.lower() not in (".csv", ".parquet", ".jsonl"):
        raise UserError(f"{out} has no known suffix", "Use .csv, .jsonl or .parquet")


def _raise(error: UserError) -> Image.Image:
    raise error


def _unicode(row: Row) -> Row:
    """A row whose picture's name is Unicode: names of files need not be."""
    return {**row, "image": row["image"].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")}


Corner = tuple[float, float]
_FORMS = (
    "Give JSON (boxes [left, top, right, bottom], four [x, y], or objects with COCO's bbox or PaddleOCR's points), "
    "or ICDAR's lines: x1,y1,x2,y2,x3,y3,x4,y4 or left,top,right,bottom, then the text"
)
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


def read_boxes(path: Path, page: str = "") -> list[Box]:
    """Read a file of boxes: JSON where its name ends so, else ICDAR's text lines.

    Args:
        path: the file. page: the picture's file name, which chooses among the images of a COCO file.

    Raises:
        UserError: it cannot be read, or an entry or line holds no box; the message names which.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        boxes = _of_json(json.loads(text), page) if path.suffix.lower() == ".json" else _of_lines(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as boxes ({reason})", _FORMS) from error
    if not boxes:
        raise UserError(f"{path} holds no box", _FORMS)
    return [Box(number, corners) for number, corners in enumerate(boxes, 1)]


def _of_json(value: Any, page: str) -> list[tuple[Corner, Corner, Corner, Corner]]:
    if isinstance(value, dict) and "annotations" in value:
        value = _annotations_of(value, page)
    elif isinstance(value, dict):
        lists = [entry for entry in value.values() if isinstance(entry, list)]
        if len(lists) != 1:
            raise ValueError(f"{len(lists)} lists in the object, and none called annotations")
        value = lists[0]
    if not isinstance(value, list):
        raise ValueError("no list of boxes")
    found = []
    for number, entry in enumerate(value, 1):
        try:
            found.append(_corners(entry))
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ValueError(f"entry {number}: {str(error)[:120]}") from error
    return found


def _annotations_of(coco: dict[str, Any], page: str) -> list[Any]:
    """Return the annotations of the page; of all where the file has one image."""
    images, annotations = coco.get("images", []), coco["annotations"]
    if not all(isinstance(part, list) and all(isinstance(e, dict) for e in part) for part in (images, annotations)):
        raise ValueError("images and annotations are no lists of objects")
    if len(images) < 2:
        return list(annotations)
    ids = [image.get("id") for image in images if Path(str(image.get("file_name"))).name == Path(page).name]
    if len(ids) != 1:
        raise ValueError(f"{len(ids)} of its {len(images)} images are called {Path(page).name}")
    return [entry for entry in annotations if entry.get("image_id") == ids[0]]


def _corners(entry: Any) -> tuple[Corner, Corner, Corner, Corner]:
    if isinstance(entry, dict):
        if "bbox" in entry:  # COCO's: left, top, width, height
            left, top, width, height = _numbers(entry["bbox"], 4)
            return _rectangle(left, top, left + width, top + height)
        name = next((name for name in ("points", "corners") if name in entry), None)
        if name is None:
            raise ValueError("no bbox, points or corners in it")
        entry = entry[name]
    if not isinstance(entry, list):
        raise ValueError("neither a list nor an object")
    if entry and not isinstance(entry[0], list):
        if len(entry) == 8:
            x = _numbers(entry, 8)
            return (x[0], x[1]), (x[2], x[3]), (x[4], x[5]), (x[6], x[7])
        return _rectangle(*_numbers(entry, 4))
    if len(entry) != 4:
        raise ValueError(f"{len(entry)} corners, not 4")
    a, b, c, d = (_numbers(corner, 2) for corner in entry)
    return (a[0], a[1]), (b[0], b[1]), (c[0], c[1]), (d[0], d[1])


def _numbers(values: Any, count: int) -> list[float]:
    if not isinstance(values, list) or len(values) != count or any(isinstance(v, bool | str) for v in values):
        raise ValueError(f"{values} are not {count} numbers")
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{values} are not all finite")
    return numbers


def _of_lines(text: str) -> list[tuple[Corner, Corner, Corner, Corner]]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        # No quotes are parsed: a text may hold any, and stands behind the numbers.
        parts = line.split(",") if "," in line else line.split()
        numbers = list(map(float, takewhile(_is_number, parts)))
        if not line.strip():
            continue
        if len(numbers) < 4:
            raise ValueError(f"line {number} begins with {len(numbers)} numbers: {line[:60]}")
        found.append(_corners(numbers[: 8 if len(numbers) >= 8 else 4]))
    return found


def _rectangle(left: float, top: float, right: float, bottom: float) -> tuple[Corner, Corner, Corner, Corner]:
    return (left, top), (right, top), (right, bottom), (left, bottom)


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
