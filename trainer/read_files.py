"""``dptr read`` over many pictures: predictions one after another, and the file it writes as it goes."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dptr.cache import plain_json
from dptr.cache.errors import UserError
from dptr.cache.progress import note
from dptr.cache.stores.files import atomic_path
from dptr.trainer.model.recognizer import Prediction
from dptr.trainer.page_boxes import read_boxes
from dptr.trainer.read import Reader, open_picture

Row = dict[str, Any]
#: Says which picture it is, and opens it.
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


@dataclass
class Tally:
    """What came of the pictures: how many were read, and what kept others from it."""

    read: int = 0
    problems: list[str] = field(default_factory=list)


def read_rows(reader: Reader, sources: Iterable[Source], tally: Tally, batch_size: int | None = None) -> Iterator[Row]:
    """Yield a row for each picture that can be read, in order, and count; memory holds a few batches.

    Raises:
        UserError: there is no picture, or none can be read.
    """
    for described, found in _found_in(reader, sources, batch_size):
        if isinstance(found, UserError):
            tally.problems.append(f"{found}")
        else:
            tally.read += 1
            yield {**described, **vars(found)}
    if not tally.read and not tally.problems:
        raise UserError("no image named", "Name pictures of one word each, or folders of them")
    if not tally.read:
        raise UserError(f"none of {len(tally.problems)} images could be read: {tally.problems[0]}")


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
    """Write rows as they come, to CSV, JSON lines or Parquet as the file's ending says; the file is whole or absent.

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
                {name: plain_json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
                for row in rows
            )
            return
        stream.writelines(plain_json.dumps(row) + "\n" for row in rows)


def require_form(out: Path) -> None:
    """Raise :class:`UserError` unless a file's ending is one that :func:`write_rows` knows."""
    if out.suffix.lower() not in (".csv", ".parquet", ".jsonl"):
        raise UserError(f"{out} does not say in which form", "End it in .csv, .jsonl or .parquet")


def _raise(error: UserError) -> Image.Image:
    raise error


def _unicode(row: Row) -> Row:
    """A row whose picture's name is Unicode: names of files need not be."""
    return {**row, "image": row["image"].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")}
