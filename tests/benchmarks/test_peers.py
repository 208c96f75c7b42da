"""The comparison with other recognisers, without any of them installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "peers.py"
Run = Callable[..., subprocess.CompletedProcess[str]]

#: Image and label; the protocol keeps the first four, by the last column.
LABELS = [
    ("a.png", "Caf\u00e9!", "cafe"),
    ("b.png", "TWO words", "twowords"),
    ("c.png", "3\u00b2", "32"),
    ("d.png", "x", "x"),
    ("e.png", "...", None),
    ("f.png", "\u5317\u4eac", None),
    ("g.png", "q" * 26, None),
]

#: Stands in for Tesseract: reads every page as its width in letters, parted by form feeds.
FAKE_TESSERACT = """#!{python}
import pathlib, sys
if sys.argv[1] == "--list-langs":
    print('List of available languages in "{folder}/" (1):')
else:
    assert sys.argv[-2:] == ["--psm", "8"]
    pages = pathlib.Path(sys.argv[1]).read_text().split()
    sizes = [pathlib.Path(page).read_bytes().split()[1:3] for page in pages]
    assert all(height == b"40" for _, height in sizes)
    print("\\n\\f".join({texts}[width.decode()] for width, _ in sizes))
"""


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    folder = tmp_path / "crops"
    folder.mkdir()
    for number, (name, _, _) in enumerate(LABELS):
        Image.new("RGB", (40 * (number + 1), 40), "white").save(folder / name)
    (folder / "labels.tsv").write_text("".join(f"{name}\t{label}\n" for name, label, _ in LABELS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(forked_python: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Compare peers on crops; none is installed."""

    def started(crops: Path, *options: str, tesseract: str = "none") -> subprocess.CompletedProcess[str]:
        command = [forked_python, str(SCRIPT), "--data", str(crops), "--model", "--tesseract", tesseract]
        command += ["--rapidocr-python", bare_python(crops.parent), *options]
        return subprocess.run(command, capture_output=True, text=True)

    return started


def bare_python(folder: Path) -> str:
    """A Python that has the standard library alone, so that RapidOCR is missing wherever the tests run."""
    program = folder / "bare-python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    program.chmod(0o755)
    return str(program)


def fake_tesseract(folder: Path, texts: dict[str, str]) -> str:
    program = folder / "tesseract"
    program.write_text(FAKE_TESSERACT.format(python=sys.executable, folder=folder, texts=texts))
    program.chmod(0o755)
    (folder / "eng.traineddata").write_bytes(bytes(2_000_000))
    return str(program)


def figures(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_missing_peer_is_a_line_that_says_how_to_install_it(run: Run, crops: Path) -> None:
    done = run(crops)
    assert done.returncode == 0, done.stderr
    tesseract, rapidocr = done.stdout.splitlines()[1:3]
    assert "Tesseract" in tesseract
    assert "not installed: apt install tesseract-ocr" in tesseract
    assert "RapidOCR" in rapidocr
    assert "not installed: pip install rapidocr-onnxruntime" in rapidocr


def test_tesseract_reads_all_crops_in_one_process_and_is_judged_on_each(run: Run, crops: Path, tmp_path: Path) -> None:
    program = fake_tesseract(tmp_path, {"40": "CAF\u00c9", "80": "two-words\n", "120": "", "160": "y"})
    predictions = tmp_path / "predictions.tsv"
    found = figures(run(crops, "--json", "--predictions", str(predictions), tesseract=program))
    assert found["sets"][0]["crops"] == 4
    assert found["sets"][0]["left_out"] == {"no letter or digit in the label": 2, "longer than 25 characters": 1}
    row = found["rows"][0]
    assert [line.split("\t")[2:] for line in predictions.read_text(encoding="utf-8").splitlines()] == [
        ["a.png", "cafe", "cafe"],
        ["b.png", "twowords", "twowords"],
        ["c.png", "32", ""],
        ["d.png", "x", "y"],
    ]
    assert row["accuracy"] == 0.5
    assert row["one_minus_ned"] == pytest.approx(0.5)
    # Wilson's limits of two in four.
    assert row["interval"] == pytest.approx([0.150, 0.850], abs=5e-4)
    assert row["megabytes"] == 2.0
    assert row["milliseconds_batched"] == row["milliseconds"], "it reads one by one"
    assert row["groups"] == {"1-3": [2, 0.0], "4-6": [1, 1.0], "7-9": [1, 1.0]}


def test_a_page_that_tesseract_skips_is_an_error_and_shifts_nothing(run: Run, crops: Path, tmp_path: Path) -> None:
    program = fake_tesseract(tmp_path, {"40": "a", "80": "b", "120": "c", "160": "d"})
    Path(program).write_text(Path(program).read_text().replace("in sizes))", "in sizes[1:]))"))
    done = run(crops, "--json", tesseract=program)
    assert done.returncode != 0
    assert "3 of 4 crops" in done.stderr


def test_an_exported_graph_is_read_beside_the_peers(run: Run, crops: Path, tmp_path: Path) -> None:
    helper = pytest.importorskip("onnx").helper
    pytest.importorskip("onnxruntime")
    # It says "x" to every crop: the end is 0, characters count from 1.
    says = [
        helper.make_node("Constant", [], ["x"], value=helper.make_tensor("x", 7, [1, 2], [3, 0])),
        helper.make_node("Shape", ["images"], ["batch"], start=0, end=1),
        helper.make_node("Constant", [], ["two"], value=helper.make_tensor("two", 7, [1], [2])),
        helper.make_node("Concat", ["batch", "two"], ["sizes"], axis=0),
        helper.make_node("Expand", ["x", "sizes"], ["ids"]),
        helper.make_node("Cast", ["ids"], ["confidences"], to=1),
    ]
    images = helper.make_tensor_value_info("images", 2, ["batch", 3, 8, 16])
    outputs = [helper.make_tensor_value_info(n, t, ["batch", 2]) for n, t in (("ids", 7), ("confidences", 1))]
    model = helper.make_model(
        helper.make_graph(says, "says_x", [images], outputs),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    helper.set_model_props(model, {"charset": json.dumps("abx"), "image_height": "8", "image_width": "16"})
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    row = figures(run(crops, "--json", "--model", str(path)))["rows"][2]
    assert row["reader"] == f"dptr {path}"
    assert row["accuracy"] == 0.25
    assert row["megabytes"] == path.stat().st_size / 1e6
    assert row["milliseconds"] > 0
    assert row["milliseconds_batched"] > 0
