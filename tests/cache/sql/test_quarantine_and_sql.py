from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dptr.cache.errors import TooManyRejected, UserError
from dptr.cache.file_names import QUARANTINE_FILE
from dptr.cache.rejections import Quarantine
from dptr.cache.sql.query import ask
from dptr.cache.sql.views import connect
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.manifest import Manifest
from dptr.cache.workspace import Workspace


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
    assert all(QUARANTINE_FILE in line and "no longer known" in line for line in told)


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
    assert "left out: rejected_text" in capsys.readouterr().err


def test_lines_of_a_log_that_are_no_objects_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    checksummed.write_json(run / "run.json", {"kind": "finetune"})
    (run / "metrics.jsonl").write_text('{"step": 1}\n"x"\n')
    assert connect(Workspace(tmp_path)).execute("select run, step from metrics").fetchall() == [("one", 1)]
    assert "left out of metrics: 1 lines" in capsys.readouterr().err
