"""Predictions and rejected crops are saved with the run and can be queried."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dptr.cache.crops.dataset import WordImages
from dptr.cache.file_names import QUARANTINE_FILE, RUN_FILE
from dptr.cache.sql import ask, connect, tables
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.verify import verify
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.cache.workspace import Workspace
from dptr.cli import run_command
from dptr.trainer.evaluate import ReadImages, keep_predictions, keep_rejections, keep_validation_predictions
from dptr.trainer.model.recognizer import Prediction


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = Workspace(tmp_path).runs / "one"
    folder.mkdir(parents=True)
    checksummed.write_json(folder / RUN_FILE, {"kind": "finetune"})
    return folder


def crops(folder: Path, labels: list[str]) -> Path:
    folder.mkdir()
    for number in range(len(labels)):
        Image.new("RGB", (64, 16), "white").save(folder / f"{number}.png")
    lines = [f"{number}.png\t{label}\n" for number, label in enumerate(labels)]
    (folder / "labels.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


def test_what_was_read_last_of_a_data_set_is_kept_with_the_run(run: Path, tmp_path: Path) -> None:
    for text, step in (("bar", 1), ("foo", 2)):
        predictions = [Prediction(text, 0.5, [0.25, 0.5, 1.0]), Prediction("", 0.1, [])]
        keep_predictions(run, "crops", ReadImages(["a.png", "b.png"], ["foo", "café"], predictions, ["c.png"]), step)
    keep_predictions(run, "others", ReadImages(["a.png"], ["x"], [Prediction("x", 1.0, [1.0])], []), 2)
    connection = connect(Workspace(tmp_path))
    columns = "run, key, ground_truth, prediction, correct, length, step"
    query = f"select {columns} from predictions where data = 'crops' order by key"
    assert ask(connection, query).rows() == [
        ("one", "a.png", "foo", "foo", True, 3, 2),
        ("one", "b.png", "café", "", False, 4, 2),
        ("one", "c.png", None, None, None, None, 2),
    ]
    assert ask(connection, "select avg(correct::int) from predictions join runs using (run)").rows() == [(2 / 3,)]


def test_labels_that_training_left_out_are_kept_with_the_run(run: Path, tmp_path: Path) -> None:
    folder = crops(tmp_path / "crops", ["street", "straße", "x" * 30])
    images = WordImages.open([folder], Charset.named("62"), Normalization())
    for _ in range(2):  # going on with a run does not tell it twice
        keep_rejections(run, images)
    connection = connect(Workspace(tmp_path))
    rows = ask(connection, "select item, reason from rejected_words order by item").rows()
    assert [row[0].split()[0] for row in rows] == ["1.png", "2.png"]
    assert rows[0][1].startswith("not in the charset: ß")


def test_evaluate_keeps_what_it_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, workspace = crops(tmp_path / "crops", ["one", "two"]), tmp_path / "work"
    assert run_command(["evaluate", str(folder), "--workspace", str(workspace), "--quiet"]) == 0
    capsys.readouterr()
    query = "select run, ground_truth, prediction is not null as read from predictions order by key"
    assert run_command(["sql", query, "--json", "--workspace", str(workspace)]) == 0
    assert json.loads(capsys.readouterr().out)["result"] == [["english", "one", True], ["english", "two", True]]


@pytest.mark.parametrize("words", ["none", "words.txt"])
def test_what_was_read_with_words_that_the_model_lacks_is_not_kept_as_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    folder, workspace = crops(tmp_path / "crops", ["one", "two"]), tmp_path / "work"
    if words != "none":
        (tmp_path / words).write_text("one\ntwo\n")
        words = str(tmp_path / words)
    shared = ["evaluate", str(folder), "--workspace", str(workspace)]
    assert run_command([*shared, "--quiet"]) == 0
    kept = {path: path.read_bytes() for path in workspace.rglob("*.parquet")}
    assert run_command([*shared, "--lexicon", words]) == 0
    assert "not saved for `dptr sql`" in capsys.readouterr().err
    assert kept
    assert {path: path.read_bytes() for path in workspace.rglob("*.parquet")} == kept


def test_whichever_bit_of_what_a_run_keeps_is_flipped_it_is_found_and_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = WordImages.open([crops(tmp_path / "crops", ["street", "straße"])], Charset.named("62"), Normalization())
    keep_rejections(run, images)
    predictions = keep_predictions(run, "crops", ReadImages(["a.png"], ["x"], [Prediction("x", 1.0, [1.0])], []), 2)
    for path in (run / QUARANTINE_FILE, predictions):
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            assert str(path.relative_to(run)) in [damage.file for damage in verify(run)]
        assert not {"rejected_words", "predictions"} <= {*tables(connect(Workspace(tmp_path)))}
        assert f"skipped: {path} is damaged" in capsys.readouterr().err
        path.write_bytes(whole)
    assert not {QUARANTINE_FILE, str(predictions.relative_to(run))} & {damage.file for damage in verify(run)}


def test_of_damaged_rejections_nothing_is_kept(run: Path, tmp_path: Path) -> None:
    first, second = (crops(tmp_path / name, ["street", f"{name}ß"]) for name in ("one_folder", "other_folder"))
    keep_rejections(run, WordImages.open([first], Charset.named("62"), Normalization()))
    table = pq.read_table(run / QUARANTINE_FILE)
    changed = table.set_column(2, "item", pa.array(["has changed since it was written"]))
    pq.write_table(changed.replace_schema_metadata(checksummed.METADATA), run / QUARANTINE_FILE)
    keep_rejections(run, WordImages.open([second], Charset.named("62"), Normalization()))
    assert ask(connect(Workspace(tmp_path)), "select source from rejected_words").rows() == [
        (str(second / "labels.tsv"),)
    ]


def test_what_a_killed_training_left_half_written_is_removed(run: Path) -> None:
    keep_validation_predictions(run, ["street"], ["strect"])
    left = run / "predictions" / ".validation_words.parquet.1.writing"
    left.write_bytes(b"PAR1")
    keep_validation_predictions(run, ["street"], ["street"])
    assert [path.name for path in (run / "predictions").iterdir()] == ["validation_words.parquet"]
