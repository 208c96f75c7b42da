"""`dptr read` over folders of any size and over the words of a page."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from dptr.cache.errors import UserError
from dptr.cli import run_command
from dptr.trainer.model.recognizer import Prediction
from dptr.trainer.read_files import looks_like_page, read_boxes, read_rows

SQUARE = [(10.0, 20.0), (50.0, 20.0), (50.0, 30.0), (10.0, 30.0)]
FORMS = {
    "icdar.txt": "10,20,50,20,50,30,10,30,a, text\n",
    "gt.txt": '10, 20, 50, 30, "1,2"\n',
    "spaces.txt": '10 20 50 30 "word"\n',
    "number.txt": "10,20,50,30,2026\n",
    "quote.txt": '10,20,50,20,50,30,10,30,6" pipe\n',
    "digits.txt": '10 20 50 30 "1 2 3 4"\n',
    "blank.txt": "\n10,20,50,30,a\n\n",
    "lists.json": "[[10, 20, 50, 30]]",
    "corners.json": "[[[10, 20], [50, 20], [50, 30], [10, 30]]]",
    "objects.json": '{"words": [{"text": "x", "points": [[10, 20], [50, 20], [50, 30], [10, 30]]}]}',
    "paddle.json": '[{"transcription": "x", "points": [[10, 20], [50, 20], [50, 30], [10, 30]]}]',
    "annotation.json": '[{"bbox": [10, 20, 40, 10], "category_id": 1}]',
    "coco.json": '{"images": [{"id": 1}], "annotations": [{"image_id": 1, "bbox": [10, 20, 40, 10]}]}',
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
        ("a.txt", "1,2,3\n"),
        ("a.csv", "left,top,right,bottom\n10,20,50,30\n"),
        ("a.json", '{"a": [[10, 20, 50, 30]], "b": [[10, 20, 50, 30]]}'),
        ("a.json", '[{"bbox": [10, 20, "40", 10]}]'),
        ("a.json", '{"images": [{"id": 1}, {"id": 2}], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}]}'),
        ("a.json", "[" * 100_000),
        ("a.json", f"[[{'9' * 400}, 1, 2, 3]]"),
        ("a.txt", f"{'1' * 200_000},1,2,3\n"),
    ],
)
def test_what_holds_no_boxes_is_one_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}.*Give JSON"):
        read_boxes(tmp_path / name)


def test_an_unbalanced_quote_loses_no_box(tmp_path: Path) -> None:
    lines = [f'10,{top},50,{top + 10},"{word}\n' for top, word in ((20, "a"), (40, "b"), (60, "c"))]
    (tmp_path / "gt.txt").write_text("".join(lines))
    assert [box.corners[0] for box in read_boxes(tmp_path / "gt.txt")] == [(10, 20), (10, 40), (10, 60)]


def test_a_line_or_an_entry_that_holds_no_box_is_named(tmp_path: Path) -> None:
    (tmp_path / "gt.txt").write_text("10,20,50,30,a\n10,20,b\n")
    with pytest.raises(UserError, match="line 2 begins with 2 numbers"):
        read_boxes(tmp_path / "gt.txt")
    (tmp_path / "a.json").write_text("[[10, 20, 50, 30], [10, 20]]")
    with pytest.raises(UserError, match="entry 2"):
        read_boxes(tmp_path / "a.json")


def test_a_page_of_a_coco_file_has_its_own_boxes_alone(tmp_path: Path) -> None:
    images = [{"id": 7, "file_name": "scans/one.jpg"}, {"id": 8, "file_name": "scans/two.jpg"}]
    found = [{"image_id": 7, "bbox": [1, 2, 30, 4]}, {"image_id": 8, "bbox": [10, 20, 40, 10]}]
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": found}))
    assert [list(box.corners) for box in read_boxes(tmp_path / "a.json", "two.jpg")] == [SQUARE]


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
def test_a_box_without_a_word_is_rejected(tmp_path: Path, numbers: list[float]) -> None:
    (tmp_path / "a.json").write_text(json.dumps([numbers]))
    with pytest.raises(UserError, match="box 1 encloses no word"):
        read_boxes(tmp_path / "a.json")[0].cut_from(Image.new("RGB", (100, 100)))


def test_words_of_a_page_are_read_and_what_cannot_be_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Image.new("RGB", (300, 100), "white")
    page.save(tmp_path / "page.png")
    (tmp_path / "boxes.txt").write_text("10,20,90,50\n400,20,440,30\n100,20,180,50\n")
    arguments = ["read", str(tmp_path / "page.png"), "--boxes", str(tmp_path / "boxes.txt"), "--quiet"]
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


def test_predictions_go_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b", "a", "c"):
        Image.new("RGB", (64, 20), "white").save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    for ending in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"read.{ending}"
        assert run_command(["read", str(tmp_path), "-o", str(out), "--batch-size", "2", "--quiet"]) == 4
        said = capsys.readouterr()
        assert said.out == f"2 predictions in {out}\n"
        assert "c.png cannot be read" in said.err
    lines = [json.loads(line) for line in (tmp_path / "read.jsonl").read_text().splitlines()]
    rows = pq.read_table(tmp_path / "read.parquet").to_pylist()
    with (tmp_path / "read.csv").open(encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [(row["image"], row["text"], float(row["confidence"])) for row in table] == [
        (line["image"], line["text"], line["confidence"]) for line in lines
    ]
    assert [json.loads(row["character_confidences"]) for row in table] == [
        line["character_confidences"] for line in lines
    ]
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png"]
    assert [row["text"] for row in rows] == [line["text"] for line in lines]
    assert run_command(["read", str(tmp_path), "-o", str(tmp_path / "read.xlsx")]) == 2
    assert ".csv, .jsonl or .parquet" in capsys.readouterr().err


def test_what_is_missing_is_named_and_the_rest_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(tmp_path / f"{number}.png") for number in range(5)]
    for name in names:
        Image.new("RGB", (64, 20), "white").save(name)
    (tmp_path / "empty").mkdir()
    given = [*names[:2], str(tmp_path / "gone.png"), str(tmp_path / "empty"), *names[2:]]
    assert run_command(["read", *given, "--json", "--quiet"]) == 4
    said = capsys.readouterr()
    *rows, last = map(json.loads, said.out.splitlines())
    assert [row["image"] for row in rows] == names
    assert (last["rows"], last["quarantined"]) == (5, 2)
    assert "gone.png does not exist" in said.err
    assert f"no image in {tmp_path / 'empty'}" in said.err
    assert run_command(["read", names[0], str(tmp_path / "gone.png"), "--quiet"]) == 4
    assert run_command(["read", str(tmp_path / "gone.png"), "--quiet"]) == 2


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("open", "shut"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (64, 20), "white").save(tmp_path / folder / "a.png")
    real = os.scandir

    def scandir(path: str) -> object:  # root may list what others may not
        if str(path).endswith("shut"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert run_command(["read", str(tmp_path), "--quiet"]) == 4
    said = capsys.readouterr()
    assert [line.split("\t")[0] for line in said.out.splitlines()] == [str(tmp_path / "open" / "a.png")]
    assert "shut cannot be listed: Permission denied" in said.err


def test_files_of_other_endings_are_counted_and_links_followed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "crops").mkdir()
    Image.new("RGB", (64, 20), "white").save(tmp_path / "crops" / "a.png")
    for name in ("b.heic", "c.heic", "labels.tsv", "README", "._a.png"):
        (tmp_path / "crops" / name).write_bytes(b"x")
    (tmp_path / "crops" / "loop").symlink_to(tmp_path / "crops")
    (tmp_path / "more").mkdir()
    Image.new("RGB", (64, 20), "white").save(tmp_path / "more" / "d.png")
    (tmp_path / "crops" / "more").symlink_to(tmp_path / "more")
    assert run_command(["read", str(tmp_path / "crops"), "--json"]) == 0
    said = capsys.readouterr()
    *rows, last = map(json.loads, said.out.splitlines())
    assert [Path(row["image"]).name for row in rows] == ["a.png", "d.png"]
    assert last["passed_over"] == 5
    assert "skipped 5 files that are not images: 2 .heic" in said.err


def test_a_link_to_itself_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 20), "white").save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "b.png")
    assert run_command(["read", str(tmp_path), str(tmp_path / "b.png" / "x.png"), "--quiet"]) == 4
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert said.err.count("b.png") == 2


def test_names_on_stdin_are_read_as_they_come(tmp_path: Path, forked_python: str) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (64, 20), "white").save(tmp_path / f"{name}.png")
    command = [forked_python, "-m", "dptr", "read", "-", "--quiet"]
    prediction = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert prediction.stdin is not None
    assert prediction.stdout is not None
    try:
        for name in ("a.png", "b.png"):
            prediction.stdin.write(f"{name}\n")
            prediction.stdin.flush()
            assert prediction.stdout.readline().startswith(f"{name}\t")  # before the next name is there
        prediction.stdin.close()
        assert prediction.wait(60) == 0
    finally:
        prediction.kill()


@pytest.mark.parametrize("name", ["run/run.json", "store/part-00000.parquet", "model.safetensors"])
def test_no_file_of_a_run_a_store_or_a_model_is_replaced(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 20), "white").save(tmp_path / "a.png")
    for made in ("run/run.json", "store/manifest.json", "store/part-00000.parquet", "model.safetensors"):
        (tmp_path / made).parent.mkdir(exist_ok=True)
        (tmp_path / made).write_text("{}")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / name)
    assert run_command(["read", str(tmp_path / "a.png"), "-o", str(tmp_path / "link.jsonl"), "--quiet"]) == 2
    assert "Name another" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "{}"


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
    rows = list(read_rows(ReadsNothing(), sources, []))  # type: ignore[arg-type]
    told = capsys.readouterr().err
    assert [row["image"] for row in rows] == [f"{number}.jpg" for number in range(5)]
    assert "0.jpg looks like a page" in told
    assert "4.jpg" not in told
    assert "2 more look like pages" in told


@pytest.mark.slow
def test_reading_a_large_folder_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from dptr.cli import run_command\n"
        "for folder in sys.argv[1:]:\n"
        "    assert run_command(['read', folder, '-o', folder + '.jsonl', '--batch-size', '32', '--quiet']) == 0\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)"
    )
    Image.new("RGB", (400, 100), "white").save(tmp_path / "a.png")
    for count in (32, 300):
        (tmp_path / str(count)).mkdir()
        for number in range(count):
            (tmp_path / str(count) / f"{number}.png").hardlink_to(tmp_path / "a.png")
    command = [sys.executable, "-c", code, str(tmp_path / "32"), str(tmp_path / "300")]
    few, many = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()[-2:]
    assert float(many) - float(few) < 20, "the pictures alone have 34 MB"
