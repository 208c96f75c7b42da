"""Rows of ``dptr read``: pictures that look like pages are named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from PIL import Image

from dptr.trainer.model.recognizer import Prediction
from dptr.trainer.read_files import Tally, looks_like_page, read_rows


@pytest.mark.parametrize(
    ("size", "prediction", "expected"),
    [
        ((1200, 1600), Prediction("", 0.5, []), True),
        ((1200, 1600), Prediction("llllt", 0.1, []), True),
        ((1200, 1600), Prediction("EXIT", 0.97, []), False),
        ((1600, 220), Prediction("llllt", 0.1, []), False),
        ((120, 160), Prediction("", 0.5, []), False),
    ],
)
def test_large_doubtful_pictures_look_like_pages(size: tuple[int, int], prediction: Prediction, expected: bool) -> None:
    assert looks_like_page(size, prediction) is expected


class ReadsNothing:
    """Stands in for a reader to whom every picture is empty."""

    def read_opened(self, openers: Iterable[Callable[[], Image.Image]], batch_size: int | None) -> Iterator[Prediction]:
        for opener in openers:
            opener()
            yield Prediction("", 0.5, [])


def test_pages_are_named_and_many_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    sources: Any = [({"image": f"{number}.jpg"}, lambda: Image.new("RGB", (800, 900))) for number in range(5)]
    rows = list(read_rows(ReadsNothing(), sources, Tally()))  # type: ignore[arg-type]
    told = capsys.readouterr().err
    assert [row["image"] for row in rows] == [f"{number}.jpg" for number in range(5)]
    assert "0.jpg looks like a page" in told
    assert "4.jpg" not in told
    assert "2 more look like pages" in told
