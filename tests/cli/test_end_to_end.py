"""All commands in sequence on small data, as a user would type them, and what bad use comes to."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dptr.cache.stores import checksummed as checksummed
from dptr.cli import run_command

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu"]
Dptr = Callable[..., dict[str, Any]]
WORDS = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES[:4]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a word list and photos; ``test_the_whole_way`` works in its ``ws``, nobody else needs that."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "words.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "photos").mkdir()
    for number in range(3):
        picture = Image.effect_mandelbrot((160, 120), (-2 + number * 0.3, -1.5, 1, 1.5), 50).convert("RGB")
        picture.save(folder / "photos" / f"{number}.png")
    return folder


def fail(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """Run a command that must fail and return its exit code and its one line."""
    code = run_command([*map(str, arguments), "--quiet"])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return code, lines[0]


@pytest.fixture
def run(dptr: Dptr, inputs: Path) -> Dptr:
    """Run a command that must succeed, in the inputs' workspace."""
    return lambda *arguments: dptr(*arguments, "--workspace", str(inputs / "ws"), "--quiet")


def check_that_an_unreadable_image_does_not_keep_others_from_being_read(
    capsys: pytest.CaptureFixture[str], recogniser: str, picture: Path, folder: Path
) -> None:
    folder.mkdir()
    shutil.copy(picture, folder / "good.jpg")
    (folder / "bad.jpg").write_bytes(picture.read_bytes()[:100])
    assert run_command(["read", recogniser, str(folder), "--quiet"]) == 4
    read = capsys.readouterr()
    assert [line.split("\t")[0] for line in read.out.splitlines()] == [str(folder / "good.jpg")]
    assert len(read.err.splitlines()) == 1
    assert str(folder / "bad.jpg") in read.err
    code, line = fail(capsys, "read", recogniser, folder / "bad.jpg")
    assert code == 2
    assert "bad.jpg" in line


def test_the_whole_way(
    run: Dptr,
    inputs: Path,
    small: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedded = run("embed-text", inputs / "words.txt", "--charset", "36")
    assert embedded["rows"] == embedded["computed"] == len(WORDS)
    again = run("embed-text", inputs / "words.txt", "--charset", "36")
    assert (again["rows"], again["computed"]) == (len(WORDS), 0)

    bank = run("build-orp-bank", inputs / "photos", "--crops-per-image", "4")
    assert (bank["rows"], bank["quarantined"]) == (12, 0)

    pretrained = run("pretrain", "--steps", "12", *small())
    assert pretrained["steps"] == 12
    assert 0 <= pretrained["metrics"]["accuracy_with_noise"] <= 1
    assert run("pretrain", "--steps", "12", *small())["computed"] == 0

    crops = inputs / "crops"
    rendered = run("render-words", inputs / "words.txt", "-o", crops, "--count", "60", "--style", "clean")
    assert rendered["rows"] == 60

    tuned = run("finetune", crops, "--steps", "6", *small("fmu", "encoder", "finetune"))
    assert tuned["steps"] == 6
    control = run("finetune", crops, "--from", "none", "--steps", "3", *small())
    assert control["out"] != tuned["out"]

    evaluated = run("evaluate", tuned["out"], crops)
    assert evaluated["rows"] == 60
    assert set(evaluated["sets"][str(crops)]) == {"36", "62", "94", "as_written"}

    picture = next(crops.rglob("*.jpg"))
    read = run("read", tuned["out"], picture)
    assert read["rows"] == 1
    check_that_an_unreadable_image_does_not_keep_others_from_being_read(capsys, tuned["out"], picture, inputs / "mixed")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{picture}\n\n{picture}\n"))
    assert run("read", tuned["out"], "-")["rows"] == 2

    predictions: tuple[tuple[str, list[str | Path]], ...] = ((pretrained["out"], []), (tuned["out"], [crops]))
    for name, more in predictions:
        page = Path(run("report", name, *more)["out"]).read_text(encoding="utf-8")
        assert "<svg" in page
        assert ("Attention" in page) == bool(more)
        assert (page.count("data:image/png;base64,") >= 24) == bool(more)

    counted = run("sql", "select count(*) n, avg(n_tokens) from prompts")
    assert counted["result"][0][0] == len(WORDS)
    steps = run("sql", "select max(step) from metrics where run like 'pretrain%'")
    assert steps["result"] == [[12]]


def test_stores_that_lie_elsewhere_can_be_named(
    dptr: Dptr, run: Dptr, small: Callable[..., list[str]], inputs: Path, tmp_path: Path
) -> None:
    prompts, orp = tmp_path / "elsewhere" / "prompts", tmp_path / "elsewhere" / "orp"
    run("embed-text", inputs / "words.txt", "--charset", "36", "-o", prompts)
    run("build-orp-bank", inputs / "photos", "--crops-per-image", "3", "-o", orp)
    # The workspace holds nothing: all that is read here was named.
    named = ["--prompts", str(prompts), "--orp", str(orp)]
    assert dptr("mine-neighbours", "-k", "2", *named)["rows"] == len(WORDS)
    assert dptr("sql", "select count(*) from neighbours, crops", *named)["result"] == [[len(WORDS) * 9]]
    trained = dptr("pretrain", "--steps", "2", *small(), *named)
    assert trained["steps"] == 2
    page = Path(dptr("report", trained["out"], *named)["out"]).read_text(encoding="utf-8")
    assert "By noise ratio" in page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("embed-text {folder}/nothing.txt", "nothing.txt"),
        ("embed-text {folder}/empty.txt", "no usable label"),
        ("build-orp-bank {folder}", "{folder}"),
        ("pretrain --set pretrain.step=3", "'pretrain.steps'"),
        ("pretrain --recipes tiny", "--recipes"),
        ("pretrain", "build-orp-bank"),
    ],
)
def test_what_cannot_be_done_is_one_line_that_says_why(
    stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, told: str
) -> None:
    (tmp_path / "empty.txt").write_text("")
    shutil.copytree(stores / "prompts", tmp_path / "ws" / "prompts")
    words = [word.format(folder=tmp_path) for word in arguments.split()]
    code, line = fail(capsys, *words, "--workspace", tmp_path / "ws")
    assert code == 2
    assert told.format(folder=tmp_path) in line


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_and_the_unexpected_have_their_exit_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("dptr.cache.sql.connect", fails)
    code, said = fail(capsys, "sql", "select 1")
    assert (code, "rerun the command" in said) == ((130, True) if error is KeyboardInterrupt else (1, False))


def test_stores_that_do_not_fit_are_rejected(stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(stores / "prompts", tmp_path / "prompts")
    shutil.copytree(stores / "orp", tmp_path / "orp")
    manifest = tmp_path / "orp" / "manifest.json"
    value = checksummed.read_json(manifest)
    value["identity"]["weights"] = "0" * 64
    checksummed.write_json(manifest, value)
    code, line = fail(capsys, "pretrain", "--steps", "2", "--workspace", tmp_path)
    assert code == 3
    assert "weights differ" in line
    embeddings = tmp_path / "prompts" / "part-00000.arrow"
    embeddings.write_bytes(embeddings.read_bytes()[:-100])
    code, line = fail(capsys, "pretrain", "--set", "noise.ratio=0", "--workspace", tmp_path)
    assert code == 3
    assert "part-00000.arrow" in line


def test_too_many_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.txt").write_text("good\nzürich\n")
    corpus = ("embed-text", tmp_path / "words.txt", "--charset", "36", "--workspace", tmp_path / "ws")
    code, line = fail(capsys, *corpus, "--max-bad", "0")
    assert code == 4
    assert "--max-bad" in line
    # What could be used is there, and the same command with room for the rejected word has nothing left to do.
    assert run_command([*map(str, corpus), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["computed"] == 0
