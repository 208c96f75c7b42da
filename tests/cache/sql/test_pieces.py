"""The view of the tokenizer's subword tokens: how often each was met, and how well words that hold it are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from dptr.cache.file_names import RUN_FILE
from dptr.cache.sql.views import connect, tables
from dptr.cache.stores.files import write_json
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.shards import Embeddings, write_shard
from dptr.cache.workspace import Workspace
from dptr.cli import run_command
from dptr.trainer.predictions import keep_validation_predictions

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
