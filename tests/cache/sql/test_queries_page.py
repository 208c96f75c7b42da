"""The queries of docs/sql.md, run on a store that the commands made."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from PIL import Image

from dptr.cache.sql import ask, connect
from dptr.cache.workspace import Workspace
from dptr.cli import run_command
from dptr.trainer.evaluate import ReadImages, keep_predictions
from dptr.trainer.model.recognizer import Prediction

PAGE = Path(__file__).resolve().parents[3] / "docs" / "sql.md"
QUERIES = dict(re.findall(r"\*\*(\d+)\. .*?\*\*.*?```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
WORDS = ["street", "Street", "STREET", "road", "lane", "square", "avenue", "court"]
Rows = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> duckdb.DuckDBPyConnection:
    folder = tmp_path_factory.mktemp("queries")
    (folder / "words.txt").write_text("\n".join([*WORDS, "straße"]), encoding="utf-8")
    generator = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(2):
        pixels = generator.integers(0, 255, (200, 300, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    workspace = Workspace(folder / "work")
    common = ["--workspace", str(workspace.root), "--quiet"]
    for arguments in (
        ["embed-text", str(folder / "words.txt"), "--charset", "62"],
        ["build-orp-bank", str(folder / "photos"), "--crops-per-image", "8"],
        ["mine-neighbours", "-k", "4"],
    ):
        assert run_command([*arguments, *common]) == 0
    for name, texts in (("english", ["street", "rood"]), ("mine", ["strect", "road"])):
        predictions = [Prediction(text, 0.9, []) for text in texts]
        keep_predictions(
            workspace.models / name, "crops", ReadImages(["0", "1"], ["street", "road"], predictions, ["2"])
        )
    return connect(workspace)


def _check_lengths(rows: Rows) -> bool:
    return {length: count for length, count, _ in rows} == Counter(map(len, WORDS))


def _check_letters(rows: Rows) -> bool:
    counts = Counter("".join(WORDS))
    return all(counts[letter] == times for letter, times in rows) and rows[0][1] == 1


EXPECTED: dict[str, Callable[[Rows], bool]] = {
    "1": _check_lengths,
    "2": _check_letters,
    "3": lambda rows: len(rows) == 20 and rows[0][1] == 1,
    "4": lambda rows: rows == [("street", 3, ["STREET", "Street", "street"])],
    "5": lambda rows: [(count, corpus) for _, count, _, corpus in rows] == [(len(WORDS), len(WORDS))],
    "6": lambda rows: len(rows) == 10 and rows[0][1] >= rows[-1][1] >= 1,
    "7": lambda rows: len(rows) == 7 and {rows[0][1], rows[1][1]} == {"Street", "STREET"},
    "8": lambda rows: rows == [("text", "not in the charset", 1, "straße")],
    "9": lambda rows: [row[:4] for row in rows if row[1] == 4] == [("english", 4, 1, 0.0), ("mine", 4, 1, 100.0)],
    "10": lambda rows: rows == [("road", "rood", "road"), ("street", "street", "strect")],
}


def test_there_are_ten() -> None:
    assert set(QUERIES) == set(EXPECTED)


@pytest.mark.parametrize("number", EXPECTED)
def test_a_query_of_the_page_answers_its_question(connection: duckdb.DuckDBPyConnection, number: str) -> None:
    rows = ask(connection, QUERIES[number]).rows()
    assert EXPECTED[number](rows), rows
