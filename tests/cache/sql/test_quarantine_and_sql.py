from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dptr.cache.errors import TooManyRejected, UserError
from dptr.cache.file_names import QUARANTINE_FILE, RUN_FILE
from dptr.cache.rejections import Quarantine
from dptr.cache.sql import ask, connect, tables
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import write_json
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.shards import Embeddings, write_shard
from dptr.cache.workspace import Workspace
from dptr.cli import run_command
from dptr.trainer.evaluate import keep_validation_predictions


def test_rejections_are_kept_with_place_and_reason_even_when_work_is_cut_short(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(KeyboardInterrupt), Quarantine(workspace.prompts / QUARANTINE_FILE) as quarantine:
        quarantine.reject("words.txt", 3, "bad\ud800", "not in the charset: x")
        quarantine.reject("words.txt", None, "y" * 500, "longer than 25 characters")
        raise KeyboardInterrupt
    Manifest("prompts", {}).save(workspace.prompts)
    answer = ask(connect(workspace), "select * from rejected_text order by line")
    rows = answer.rows()
    assert answer.columns == ["source", "line", "item", "reason"]
    assert rows[0] == ("words.txt", 3, "bad\\ud800", "not in the charset: x")
    assert len(rows[1][2]) == 200


def test_counts_are_by_kind_of_reason(tmp_path: Path) -> None:
    with Quarantine(tmp_path / "q.parquet") as quarantine:
        for character in "xyz":
            quarantine.reject("f", 1, character, f"not in the charset: {character}")
    assert quarantine.counts == {"not in the charset": 3}
    quarantine.check(3)
    with pytest.raises(TooManyRejected, match="3 inputs"):
        quarantine.check(2)


def test_an_empty_workspace_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dptr embed-text"):
        connect(Workspace(tmp_path))


def test_a_bad_query_names_the_tables(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with Quarantine(workspace.prompts / QUARANTINE_FILE):
        pass
    Manifest("prompts", {}).save(workspace.prompts)
    with pytest.raises(UserError, match="rejected_text"):
        ask(connect(workspace), "select * from absent")


def committed(folder: Path) -> bytes:
    """Write a store whose quarantine is listed and holds rows of two sources; return the quarantine's bytes."""
    manifest = Manifest("prompts", {})
    manifest.save(folder)
    with manifest.rewriting(folder, QUARANTINE_FILE), Quarantine(folder / QUARANTINE_FILE) as quarantine:
        quarantine.reject("first.txt", 1, "äää", "not in the charset: ä")
        quarantine.reject("second.txt", 1, "ööö", "not in the charset: ö")
    return (folder / QUARANTINE_FILE).read_bytes()


def still_reads(table: bytes) -> bool:
    try:
        return len(pq.read_table(pa.BufferReader(table))) > 0
    except (pa.ArrowException, OSError, ValueError):
        return False


def test_whichever_bit_is_flipped_no_row_of_a_damaged_quarantine_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Workspace(tmp_path).prompts
    whole = committed(folder)
    path, manifest = folder / QUARANTINE_FILE, Manifest.load(folder, "prompts")
    flipped = [
        whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :] for place in range(len(whole))
    ]
    readable = [table for table in flipped if still_reads(table)]
    assert len(readable) > 50, "many flipped bits go unseen without the manifest's hash"
    tried = [*readable[:: len(readable) // 20], *flipped[:: len(flipped) // 5]]
    for table in tried:
        path.write_bytes(table)
        going_on = dataclasses.replace(manifest, files=dict(manifest.files))
        with going_on.rewriting(folder, QUARANTINE_FILE), Quarantine(path) as quarantine:
            quarantine.reject("first.txt", 1, "äää", "not in the charset: ä")
        assert pq.read_table(path)["source"].to_pylist() == ["first.txt"]
        assert going_on.is_intact(folder, QUARANTINE_FILE)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len(tried)
    assert all(QUARANTINE_FILE in line and "are lost" in line for line in told)


def test_an_intact_quarantine_keeps_what_this_run_does_not_read(tmp_path: Path) -> None:
    folder = Workspace(tmp_path).prompts
    committed(folder)
    manifest = Manifest.load(folder, "prompts")
    with manifest.rewriting(folder, QUARANTINE_FILE), Quarantine(folder / QUARANTINE_FILE) as quarantine:
        quarantine.reads("first.txt")
    assert pq.read_table(folder / QUARANTINE_FILE)["source"].to_pylist() == ["second.txt"]


def test_a_damaged_quarantine_is_named_and_left_out_of_queries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(tmp_path)
    committed(workspace.prompts)
    pq.write_table(pa.table({"source": ["elsewhere"]}), workspace.prompts / QUARANTINE_FILE)
    with pytest.raises(UserError, match="nothing to query"):
        connect(workspace)
    assert "skipped: rejected_text" in capsys.readouterr().err


def test_lines_of_a_log_that_are_no_objects_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    checksummed.write_json(run / "run.json", {"kind": "finetune"})
    (run / "metrics.jsonl").write_text('{"step": 1}\n"x"\n')
    assert connect(Workspace(tmp_path)).execute("select run, step from metrics").fetchall() == [("one", 1)]
    assert "skipped in metrics: 1 lines" in capsys.readouterr().err


BEGIN, QUOTE, END = 0, 1, 2
#: Label, pieces as token id and letters, and the row with the same embeddings.
PROMPTS = [
    ("street", [(10, 2), (11, 4)], 0),
    ("STREET", [(10, 2), (11, 4)], 0),
    ("strong", [(10, 2), (12, 4)], 2),
    ("stst", [(10, 2), (13, 2)], 3),
]


def write_prompts(folder: Path, **left_out: bool) -> None:
    ids = [[BEGIN, QUOTE, *(token for token, _ in pieces), QUOTE, END] for _, pieces, _ in PROMPTS]
    letters = [[0, 0, *(count for _, count in pieces), 0, 0] for _, pieces, _ in PROMPTS]
    columns = {
        "label": [label for label, _, _ in PROMPTS],
        "token_ids": pa.array(ids, pa.list_(pa.int32())),
        "token_letters": pa.array(letters, pa.list_(pa.int16())),
        "embeddings_of": pa.array([first for _, _, first in PROMPTS]),
        "id": pa.array(range(len(PROMPTS))),
    }
    catalogue = pa.table({name: values for name, values in columns.items() if not left_out.get(name)})
    drawn = np.ones((len(PROMPTS), 4), np.float32)
    manifest = Manifest("prompts", {})
    embeddings = Embeddings(drawn, np.ones(len(PROMPTS), np.int64), drawn)
    manifest.shards.append(write_shard(folder, 0, catalogue, embeddings, "float32", {}))
    manifest.save(folder)


def write_run(workspace: Workspace, name: str, right: dict[str, bool]) -> None:
    folder = workspace.runs / name
    folder.mkdir(parents=True)
    write_json(folder / RUN_FILE, {"kind": "pretrain"})
    keep_validation_predictions(
        folder, list(right), [label.lower() if is_right else "?" for label, is_right in right.items()]
    )


def test_a_piece_counts_once_a_prompt_whatever_the_case_and_knows_what_it_spells(tmp_path: Path) -> None:
    write_prompts(Workspace(tmp_path).prompts)
    asked = "select token, token_id, rows, run, words, accuracy from subword_tokens order by token_id"
    assert connect(Workspace(tmp_path)).execute(asked).fetchall() == [
        ("st", 10, 3, None, 0, None),
        ("reet", 11, 1, None, 0, None),
        ("rong", 12, 1, None, 0, None),
        ("st", 13, 1, None, 0, None),
    ]


def test_accuracy_is_that_of_each_runs_validation_words_with_the_piece(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_prompts(workspace.prompts)
    write_run(workspace, "early", {"Street": False, "stst": True})
    write_run(workspace, "late", {"strong": True})
    asked = "select run, token, words, accuracy from subword_tokens where run is not null order by run, token_id"
    assert connect(workspace).execute(asked).fetchall() == [
        ("early", "st", 2, 0.5),
        ("early", "reet", 1, 0.0),
        ("early", "st", 1, 1.0),
        ("late", "st", 1, 1.0),
        ("late", "rong", 1, 1.0),
    ]


def test_a_store_that_does_not_know_its_letters_has_no_such_view(tmp_path: Path) -> None:
    write_prompts(Workspace(tmp_path).prompts, token_letters=True)
    assert tables(connect(Workspace(tmp_path))) == ["prompts"]


def test_a_training_keeps_what_it_read_of_validation_words(tmp_path: Path) -> None:
    words = [a + b + c for a in "bdfg" for b in "aeiou" for c in "nrst"]
    (tmp_path / "words.txt").write_text("\n".join(words), encoding="utf-8")
    there = ["--workspace", str(tmp_path), "--quiet"]
    small = ["decoder.kind=nrtr", "decoder.dim=32", "decoder.heads=2", "decoder.layers=1", "decoder.feed_forward=32"]
    small += ["pretrain.validation_share=0.2", "noise.ratio=0.0"]
    changes = [part for change in small for part in ("--set", change)]
    assert run_command(["embed-text", str(tmp_path / "words.txt"), "--charset", "36", *there]) == 0
    assert run_command(["pretrain", "--steps", "2", "-o", str(tmp_path / "runs" / "run"), *changes, *there]) == 0
    connection = connect(Workspace(tmp_path))
    kept = connection.execute("select ground_truth, prediction, correct from predictions where run = 'run'").fetchall()
    assert {ground_truth for ground_truth, _, _ in kept} < set(words)
    assert len(kept) > 2
    assert all(correct == (ground_truth == prediction) for ground_truth, prediction, correct in kept)
    (count,) = connection.execute("select max(words) from subword_tokens where run = 'run'").fetchone()  # type: ignore[misc]
    assert 0 < count <= len(kept)
