"""`dptr read` over folders of any size and over the words of a page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from dptr.cache.errors import UserError
from dptr.cli import run_command
from dptr.trainer.page_boxes import read_boxes

SQUARE = [(10.0, 20.0), (50.0, 20.0), (50.0, 30.0), (10.0, 30.0)]
FORMS = {
    "icdar.txt": "10,20,50,20,50,30,10,30,a, text\n",
    "gt.txt": '10, 20, 50, 30, "1,2"\n',
    "spaces.txt": '10 20 50 30 "word"\n',
    "number.txt": "10,20,50,30,2026\n",
    "edges.csv": "word,left,top,right,bottom\nx,10,20,50,30\n",
    "sized.csv": "x,y,width,height\n10,20,40,10\n",
    "corners.csv": "x1,y1,x2,y2,x3,y3,x4,y4,text\n10,20,50,20,50,30,10,30,x\n",
    "lists.json": "[[10, 20, 50, 30]]",
    "corners.json": "[[[10, 20], [50, 20], [50, 30], [10, 30]]]",
    "objects.json": '{"words": [{"text": "x", "points": [[10, 20], [50, 20], [50, 30], [10, 30]]}]}',
    "sizes.json": '[{"x": 10, "y": 20, "width": 40, "height": 10}]',
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_of_boxes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    assert [list(box.corners) for box in read_boxes(tmp_path / name)] == [SQUARE]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{}"),
        ("a.json", "[[1, 2]]"),
        ("a.json", "no"),
        ("a.txt", ""),
        ("a.txt", "one,two\n"),
        ("a.csv", "1,2,3\n"),
        ("a.json", "[" * 100_000),
        ("a.json", f"[[{'9' * 400}, 1, 2, 3]]"),
        ("a.csv", f'x,y,width,height\n"{"1" * 200_000}",1,2,3\n'),
    ],
)
def test_what_holds_no_boxes_is_one_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}.*Give JSON, CSV"):
        read_boxes(tmp_path / name)


def test_a_quadrilateral_becomes_upright(tmp_path: Path) -> None:
    page = Image.new("RGB", (200, 200), "black")
    # Four differently coloured quarters of a rotated rectangle end in the four corners of the crop.
    corners = np.array([(60, 20), (160, 120), (120, 160), (20, 60)], float)
    draw, middle = ImageDraw.Draw(page), corners.mean(0)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    for number, colour in enumerate(colours):
        sides = [(corners[number] + corners[other]) / 2 for other in ((number + 1) % 4, (number - 1) % 4)]
        draw.polygon([tuple(point) for point in (corners[number], sides[0], middle, sides[1])], fill=colour)
    (tmp_path / "a.json").write_text(json.dumps([corners.tolist()]))
    crop = read_boxes(tmp_path / "a.json")[0].cut_from(page)
    assert crop.size == (141, 57)
    assert [crop.getpixel(place) for place in ((20, 10), (120, 10), (120, 46), (20, 46))] == colours


@pytest.mark.parametrize(
    "numbers",
    [[10, 20, 10, 30], [10, 20, 11, 30], [500, 20, 540, 30], [10, 20, 50, 20, 10, 30, 50, 30], [50, 20, 10, 30]],
)
def test_a_box_without_a_word_is_refused(tmp_path: Path, numbers: list[float]) -> None:
    (tmp_path / "a.json").write_text(json.dumps([numbers]))
    with pytest.raises(UserError, match="box 1 encloses no word"):
        read_boxes(tmp_path / "a.json")[0].cut_from(Image.new("RGB", (100, 100)))


def test_words_of_a_page_are_read_and_what_cannot_be_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Image.new("RGB", (300, 100), "white")
    page.save(tmp_path / "page.png")
    (tmp_path / "boxes.csv").write_text("left,top,right,bottom\n10,20,90,50\n400,20,440,30\n100,20,180,50\n")
    arguments = ["read", str(tmp_path / "page.png"), "--boxes", str(tmp_path / "boxes.csv"), "--quiet"]
    assert run_command([*arguments, "--json"]) == 4
    said = capsys.readouterr()
    *rows, last = (json.loads(line) for line in said.out.splitlines())
    assert [(row["box"], row["corners"][0]) for row in rows] == [(1, [10, 20]), (3, [100, 20])]
    assert (last["rows"], last["quarantined"]) == (2, 1)
    assert "box 2 encloses no word" in said.err
    assert run_command(arguments) == 4
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"{tmp_path / 'page.png'}:1",
        f"{tmp_path / 'page.png'}:3",
    ]
    assert run_command([*arguments[:2], str(tmp_path / "page.png"), *arguments[2:]]) == 2


def test_readings_go_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b", "a", "c"):
        Image.new("RGB", (64, 20), "white").save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    for ending in ("jsonl", "parquet"):
        out = tmp_path / f"read.{ending}"
        assert run_command(["read", str(tmp_path), "-o", str(out), "--batch-size", "2", "--quiet"]) == 4
        said = capsys.readouterr()
        assert said.out == f"2 readings in {out}\n"
        assert "c.png cannot be read" in said.err
    lines = [json.loads(line) for line in (tmp_path / "read.jsonl").read_text().splitlines()]
    rows = pq.read_table(tmp_path / "read.parquet").to_pylist()
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png"]
    assert [row["text"] for row in rows] == [line["text"] for line in lines]
    assert run_command(["read", str(tmp_path), "-o", str(tmp_path / "read.xlsx")]) == 2
    assert ".jsonl or .parquet" in capsys.readouterr().err


@pytest.mark.slow
def test_reading_a_large_folder_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from dptr.cli import run_command; code = run_command(sys.argv[1:]); "
        "print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    Image.new("RGB", (64, 20), "white").save(tmp_path / "a.png")
    peaks = []
    for count in (64, 1500):
        folder = tmp_path / str(count)
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.png").hardlink_to(tmp_path / "a.png")
        arguments = ["read", str(folder), "-o", str(tmp_path / "x.jsonl"), "--batch-size", "32", "--quiet"]
        ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        exit_code, peak = ended.stderr.split()[-2:]
        assert exit_code == "0"
        peaks.append(int(peak) / 1024)
    assert peaks[1] - peaks[0] < 25
