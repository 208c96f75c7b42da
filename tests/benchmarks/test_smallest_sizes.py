"""Every benchmark and every example runs at its smallest size, which its own description names, and judges its inputs.

They run in this process, so that the libraries are loaded once; WORDS, PHOTOS and the like are small stand-ins.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dptr.cli import run_command
from dptr.trainer import adapt

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("smallest_sizes"),
    pytest.mark.usefixtures("_as_a_program"),
]
ROOT = Path(__file__).resolve().parents[2]
#: No programs of their own, run by tests of their own, in need of other readers, or training for minutes.
WITHOUT = {
    "train.py",
    "scripts_tokenizer.py",
    "adaptation.py",
    "adaptation_domains.py",
    "faulty_commands.py",
    "fuzzed_readers.py",
    "common.py",
    "learner.py",
    "peers.py",
    "peer_readers.py",
    "rapidocr_worker.py",
    "word_lists.py",
    "number_plates.py",
    "execute_notebook.py",
}


def smallest_size(path: Path) -> str | None:
    """The arguments that a program's description names."""
    found = re.search(r"^Smallest size: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return None if found is None else found[1]


PROGRAMS = [
    path
    for folder in ("benchmarks", "examples", "examples/train_clip")
    for path in sorted((ROOT / folder).glob("*.py"))
]


Named = dict[str, str]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Named:
    """Words and photos, few and small."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = np.random.default_rng(0)
    syllables = [a + b for a in "bcdfghlmnprstvw" for b in "aeiou"]
    words = list(dict.fromkeys("".join(generator.choice(syllables, 3)) for _ in range(3000)))
    (folder / "words.txt").write_text("\n".join(words) + "\n")
    (folder / "few.txt").write_text("\n".join(words[:150]) + "\n")
    (folder / "photos").mkdir()
    for number in range(2):
        pixels = generator.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((160, 120)).save(folder / "photos" / f"{number}.png")
    names = {"WORDS": "words.txt", "FEW_WORDS": "few.txt", "PHOTOS": "photos"}
    return {name: str(folder / file) for name, file in names.items()}


@pytest.fixture
def outputs(tmp_path: Path) -> Named:
    """Places to write to; each program has its own."""
    names = {"OUT": "out", "PICTURE": "picture.png", "ROWS": "rows.parquet"}
    return {name: str(tmp_path / file) for name, file in names.items()}


@pytest.fixture(scope="module")
def exported(inputs: Named, small: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Named:
    """A recogniser of two steps as ONNX, and a crop to read."""
    workspace = tmp_path_factory.mktemp("exported")
    crops, run, model = workspace / "crops", workspace / "run", workspace / "model.onnx"
    dptr(workspace, "render-words", inputs["FEW_WORDS"], "-o", crops, "--count", "12", "--style", "clean")
    columns = ["--set=decoder.kind=ctc", "--set=fmu.kind=none", "--set=encoder.kind=convolution"]
    dptr(workspace, "finetune", crops, "--from", "none", "--steps", "2", "-o", run, *small(), *columns)
    dptr(workspace, "export", run, "--to", "onnx", "-o", model)
    return {"CROPS": str(crops), "ONNX": str(model), "IMAGE": str(next(crops.rglob("*.jpg")))}


def dptr(workspace: Path, *arguments: object) -> None:
    """Run a command in this process; it must succeed."""
    assert run_command([*map(str, arguments), "--workspace", str(workspace), "--quiet"]) == 0, arguments[0]


#: Word in capitals -> the fixture that knows what it stands for.
STAND_INS = {
    **dict.fromkeys(("WORDS", "FEW_WORDS", "PHOTOS"), "inputs"),
    **dict.fromkeys(("OUT", "PICTURE", "ROWS"), "outputs"),
    **dict.fromkeys(("CROPS", "ONNX", "IMAGE"), "exported"),
}


@pytest.fixture
def _as_a_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What a program sets for its process is undone: threads, where modules are looked for, where it runs."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


def test_every_program_names_its_smallest_size() -> None:
    silent = {path.name for path in PROGRAMS if smallest_size(path) is None}
    assert silent - WITHOUT == set()


def run_program(path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str | int | None:
    """Run a program in this process, and return what it left with."""
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as done:
        return done.code
    return None


def inputs_of(path: Path) -> set[str]:
    """Return the words of a smallest size that stand for what must be there."""
    given = {"WORDS", "FEW_WORDS", "PHOTOS", "CROPS", "ONNX", "IMAGE"}
    return given & set(shlex.split(smallest_size(path) or ""))


WITH_SIZE = [path for path in PROGRAMS if smallest_size(path) and path.name not in WITHOUT]
#: Started by another program, in whatever Python has its library.
WORKER = "rapidocr_worker.py"
SCRIPTS = [
    path
    for folder in ("benchmarks", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8") and path.name != WORKER
]


@pytest.mark.parametrize("path", WITH_SIZE, ids=lambda path: path.name)
def test_it_runs(
    path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    forked_python: str,
) -> None:
    monkeypatch.setattr(sys, "executable", forked_python)
    monkeypatch.syspath_prepend(str(path.parent))
    arguments = shlex.split(smallest_size(path) or "")
    for place, word in enumerate(arguments):
        if word in STAND_INS:
            arguments[place] = request.getfixturevalue(STAND_INS[word])[word]
    capsys.readouterr()
    if path.name == "faults.py":  # it forks, which a process with the threads of many tests should not
        said = subprocess.run([forked_python, path, *arguments], capture_output=True, text=True, check=True).stdout
    else:
        assert run_program(path, arguments, monkeypatch) in (None, 0)
        said = capsys.readouterr().out
    # A figure that went wrong shows as one of these; a benchmark that prints nothing measured nothing.
    assert path.parent.name == "examples" or re.search(r"\d", said)
    assert not re.search(r"\b(nan|inf)\b", said)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help_is_given(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(str(path.parent))
    assert run_program(path, ["--help"], monkeypatch) == 0
    assert "usage: " in capsys.readouterr().out


@pytest.mark.parametrize("path", [path for path in WITH_SIZE if inputs_of(path)], ids=lambda path: path.name)
def test_inputs_that_are_missing_end_it_in_one_line(
    path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = shlex.split(smallest_size(path) or "")
    named = {
        word: str(tmp_path / "missing" / word if word in inputs_of(path) else tmp_path / word) for word in STAND_INS
    }
    code = run_program(path, [named.get(word, word) for word in arguments], monkeypatch)
    said = capfd.readouterr().err
    last = code if isinstance(code, str) else said.splitlines()[-1]
    assert code not in (None, 0)
    assert "Traceback" not in said
    assert re.search(r"error: |No such file|no such|not found|missing", last), last


def test_adaptation_is_measured(
    tmp_path: Path, inputs: Named, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A domain of four crops; the rendered ones are fewer than the program's."""
    monkeypatch.setattr(adapt, "_RENDERED", 6)
    monkeypatch.setattr(adapt, "_GENERAL_READ", 4)
    domain = tmp_path / "own-0"
    for name, seed in (("crops", "0"), ("test", "1")):
        rendered = ["-o", str(domain / name), "--count", "4", "--style", "clean", "--seed", seed, "--quiet"]
        assert run_command(["render-words", inputs["FEW_WORDS"], *rendered]) == 0
    (domain / "text.txt").write_text(Path(inputs["FEW_WORDS"]).read_text())
    arguments = [str(domain), "-o", str(tmp_path / "out"), "--steps", "2", "--configurations", "0,1", "--photos"]
    assert run_program(ROOT / "benchmarks" / "adaptation.py", [*arguments, inputs["PHOTOS"]], monkeypatch) in (None, 0)
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    names = ("start", "labels", "labels + rendering")
    endings = ("", " + lexicon", ", no lexicon")
    assert [row["configuration"] for row in rows] == [name + ending for name in names for ending in endings]
    assert all(len(row["predictions"]) == row["words"] == 4 for row in rows)
    table = capsys.readouterr().out
    assert all(f"| own | {row['configuration']} |" in table for row in rows)
