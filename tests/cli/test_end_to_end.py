"""All commands in sequence on small data, as a user would type them, and what bad use comes to."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command

from dptr.cache.stores import checksummed as checksummed
from dptr.cli import app, run_command

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu"]
WORDS = [a + b + c for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES[:4]]
SMALL = [
    *("--set", "decoder.dim=32", "--set", "decoder.heads=2", "--set", "decoder.feed_forward=64"),
    *("--set", "encoder.dim=32", "--set", "encoder.heads=2", "--set", "encoder.layers=1"),
    *("--set", "encoder.patch_height=8", "--set", "fmu.queries=8", "--set", "fmu.heads=2"),
    *("--set", "pretrain.batch_size=16", "--set", "finetune.batch_size=8"),
]


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


@pytest.fixture(scope="module")
def stores(inputs: Path) -> Path:
    """A workspace with a prompt store and a bank."""
    folder = inputs / "stores"
    for command in (["embed-text", inputs / "words.txt", "--charset", "36"], ["build-orp-bank", inputs / "photos"]):
        assert run_command([*map(str, command), "--workspace", str(folder), "--quiet"]) == 0
    return folder


def run(capsys: pytest.CaptureFixture[str], inputs: Path, *arguments: str | Path) -> dict[str, Any]:
    """Run a command that must succeed and return its JSON."""
    command = [*map(str, arguments), "--workspace", str(inputs / "ws"), "--json", "--quiet"]
    code = run_command(command)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result: dict[str, Any] = json.loads(captured.out.splitlines()[-1])
    return result


def fail(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str]:
    """Run a command that must fail and return its exit code and its one line."""
    code = run_command([*map(str, arguments), "--quiet"])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    return code, lines[0]


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


def test_the_whole_way(inputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = run(capsys, inputs, "embed-text", inputs / "words.txt", "--charset", "36")
    assert embedded["rows"] == embedded["computed"] == len(WORDS)
    again = run(capsys, inputs, "embed-text", inputs / "words.txt", "--charset", "36")
    assert (again["rows"], again["computed"]) == (len(WORDS), 0)

    bank = run(capsys, inputs, "build-orp-bank", inputs / "photos", "--crops-per-image", "4")
    assert (bank["rows"], bank["quarantined"]) == (12, 0)

    pretrained = run(capsys, inputs, "pretrain", "--steps", "12", *SMALL)
    assert pretrained["steps"] == 12
    assert 0 <= pretrained["metrics"]["accuracy_with_noise"] <= 1
    assert run(capsys, inputs, "pretrain", "--steps", "12", *SMALL)["computed"] == 0

    crops = inputs / "crops"
    rendered = run(
        capsys, inputs, "render-words", inputs / "words.txt", "-o", crops, "--count", "60", "--style", "clean"
    )
    assert rendered["rows"] == 60

    tuned = run(capsys, inputs, "finetune", "--data", crops, "--steps", "6", *SMALL[6:])
    assert tuned["steps"] == 6
    control = run(capsys, inputs, "finetune", "--data", crops, "--from", "none", "--steps", "3", *SMALL)
    assert control["out"] != tuned["out"]

    evaluated = run(capsys, inputs, "evaluate", tuned["out"], "--data", crops)
    assert evaluated["rows"] == 60
    assert set(evaluated["sets"][str(crops)]) == {"36", "62", "94", "as_written"}

    picture = next(crops.rglob("*.jpg"))
    read = run(capsys, inputs, "read", tuned["out"], picture)
    assert read["rows"] == 1
    check_that_an_unreadable_image_does_not_keep_others_from_being_read(capsys, tuned["out"], picture, inputs / "mixed")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{picture}\n\n{picture}\n"))
    assert run(capsys, inputs, "read", tuned["out"], "-")["rows"] == 2

    predictions: tuple[tuple[str, list[str | Path]], ...] = ((pretrained["out"], []), (tuned["out"], ["--data", crops]))
    for name, more in predictions:
        page = Path(run(capsys, inputs, "report", name, *more)["out"]).read_text(encoding="utf-8")
        assert "<svg" in page
        assert ("Attention" in page) == bool(more)
        assert (page.count("data:image/png;base64,") >= 24) == bool(more)

    counted = run(capsys, inputs, "sql", "select count(*) n, avg(n_tokens) from prompts")
    assert counted["result"][0][0] == len(WORDS)
    steps = run(capsys, inputs, "sql", "select max(step) from metrics where run like 'pretrain%'")
    assert steps["result"] == [[12]]


def test_stores_that_lie_elsewhere_can_be_named(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, orp = tmp_path / "elsewhere" / "prompts", tmp_path / "elsewhere" / "orp"
    run(capsys, inputs, "embed-text", inputs / "words.txt", "--charset", "36", "-o", prompts)
    run(capsys, inputs, "build-orp-bank", inputs / "photos", "--crops-per-image", "3", "-o", orp)
    # A workspace with nothing in it: all that is read here was named.
    bare = tmp_path / "bare"
    bare.mkdir()
    named = ["--prompts", str(prompts), "--orp", str(orp)]
    assert run(capsys, bare, "mine-neighbours", "-k", "2", *named)["rows"] == len(WORDS)
    assert run(capsys, bare, "sql", "select count(*) from neighbours, crops", *named)["result"] == [[len(WORDS) * 9]]
    trained = run(capsys, bare, "pretrain", "--steps", "2", *SMALL, *named)
    assert trained["steps"] == 2
    page = Path(run(capsys, bare, "report", trained["out"], *named)["out"]).read_text(encoding="utf-8")
    assert "By noise ratio" in page


def test_missing_file(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = fail(capsys, "embed-text", inputs / "nothing.txt", "--workspace", inputs / "other")
    assert code == 2
    assert "nothing.txt" in line


def test_empty_corpus(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inputs / "empty.txt").write_text("")
    code, line = fail(capsys, "embed-text", inputs / "empty.txt", "--workspace", inputs / "other")
    assert code == 2
    assert "no usable label" in line


def test_folder_without_images(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (inputs / "bare").mkdir(exist_ok=True)
    code, line = fail(capsys, "build-orp-bank", inputs / "bare", "--workspace", inputs / "other")
    assert code == 2
    assert "bare" in line


def test_unknown_recipe_key_names_the_nearest(inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = fail(capsys, "pretrain", "--set", "pretrain.step=3", "--workspace", inputs / "other")
    assert code == 2
    assert "'pretrain.steps'" in line


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_and_the_unexpected_have_their_exit_codes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("dptr.cache.sql.views.connect", fails)
    code, said = fail(capsys, "sql", "select 1")
    assert (code, "rerun the command" in said) == ((130, True) if error is KeyboardInterrupt else (1, False))


def test_unknown_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(capsys, "pretrian")[0] == 2
    assert fail(capsys, "pretrain", "--recipes", "tiny")[0] == 2


def test_store_of_another_encoder(stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(stores / "prompts", tmp_path / "prompts")
    shutil.copytree(stores / "orp", tmp_path / "orp")
    manifest = tmp_path / "orp" / "manifest.json"
    value = checksummed.read_json(manifest)
    value["identity"]["weights"] = "0" * 64
    checksummed.write_json(manifest, value)
    code, line = fail(capsys, "pretrain", "--steps", "2", "--workspace", tmp_path)
    assert code == 3
    assert "weights differ" in line
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "prompts").iterdir()}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "prompts").iterdir()} == before


def test_too_many_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.txt").write_text("good\nzürich\n")
    corpus = ("embed-text", tmp_path / "words.txt", "--charset", "36", "--workspace", tmp_path / "ws")
    code, line = fail(capsys, *corpus, "--max-bad", "0")
    assert code == 4
    assert "--max-bad" in line
    # What could be used is there, and the same command with room for the rejected word has nothing left to do.
    assert run_command([*map(str, corpus), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["computed"] == 0


def test_damaged_store_is_rejected(stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(stores / "prompts", tmp_path / "prompts")
    embeddings = tmp_path / "prompts" / "part-00000.arrow"
    embeddings.write_bytes(embeddings.read_bytes()[:-100])
    code, line = fail(capsys, "pretrain", "--set", "noise.ratio=0", "--workspace", tmp_path)
    assert code == 3
    assert "part-00000.arrow" in line


def test_pretrain_without_a_bank_says_what_to_do(
    stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(stores / "prompts", tmp_path / "prompts")
    code, line = fail(capsys, "pretrain", "--workspace", tmp_path)
    assert code == 2
    assert "build-orp-bank" in line


def test_every_command_has_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    listed = capsys.readouterr().out
    commands = list(get_command(app).commands)  # type: ignore[attr-defined]
    assert "pretrain" in commands
    assert all(f" {name} " in listed for name in commands)
    for name in commands:
        assert run_command([name, "--help"]) == 0
        assert "Example: dptr" in capsys.readouterr().out, name
