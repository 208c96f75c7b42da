"""`dptr sql` answers questions about a workspace and touches nothing else, whatever it is asked."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from dptr.cache.errors import UserError
from dptr.cache.file_names import MANIFEST_FILE, METRICS_FILE, QUARANTINE_FILE, RUN_FILE
from dptr.cache.printing import table_lines
from dptr.cache.sql import ask, connect, json_pieces
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.workspace import Workspace


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()
    }


WRITES = [
    "copy (select 1) to '{manifest}'",
    "copy (select 1) to '{outside}'",
    "with x as (copy (select 1) to '{manifest}') select 1",
    "explain analyze copy (select 1) to '{manifest}'",
    "prepare p as copy (select 1) to '{manifest}'",
    "export database '{outside}'",
    "attach '{outside}' as other",
    "attach '{manifest}' as other",
    "create table t as select 1",
    "create view v as select 1",
    "create macro m() as 1",
    "insert into metrics select * from metrics",
    "delete from runs",
    "drop table runs",
    "update metrics set loss = 0",
    "with x as (insert into metrics select * from metrics returning *) select * from x",
    "with x as (delete from runs returning *) select * from x",
    "with x as materialized (update metrics set loss = 0 returning *) select count(*) from x",
    "explain analyze with x as (delete from runs returning *) from x",
    "install httpfs",
    "load httpfs",
    "set enable_external_access = true",
    "set allowed_directories = ['/']",
    "reset enable_external_access",
    "set lock_configuration = false",
    "pragma enable_profiling = 'json'",
    "call pragma_database_size()",
    "select 1; select 2",
    "begin",
    "import database '{outside}'",
]
# Each would give rows if it were let: the file is of the kind that is asked for.
READS = [
    "select content from read_text('{secret}')",
    "select size from read_blob('{secret}')",
    "select * from read_csv('{secret}')",
    "select * from read_json('{manifest}')",
    "select label from read_parquet('{catalogue}')",
    "select * from '{secret}'",
    "select * from glob('{folder}/*')",
    "select * from sniff_csv('{secret}')",
    "select num_values from parquet_metadata('{catalogue}')",
    "from query('select content from read_text(''{secret}'')')",
    "select * from secret_rows",
]


@pytest.mark.parametrize("query", WRITES + READS)
def test_nothing_is_written_and_nothing_foreign_is_read(workspace: Workspace, tmp_path: Path, query: str) -> None:
    secret_rows = pa.table({"secret": [1]})  # a variable of this process, which DuckDB would find by its name
    assert len(secret_rows) == 1
    (tmp_path / "secret.csv").write_text("secret\n1\n")
    before = contents(tmp_path)
    places = {
        "manifest": workspace.prompts / MANIFEST_FILE,
        "catalogue": workspace.prompts / "part-00000.parquet",
        "outside": tmp_path / "outside",
        "secret": tmp_path / "secret.csv",
        "folder": tmp_path,
    }
    escaped = {name: str(place).replace("'", "''") for name, place in places.items()}
    with pytest.raises(UserError):
        ask(connect(workspace), query.format(**escaped)).rows()
    assert contents(tmp_path) == before
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("select label from prompts order by label", [("straße",), ("street",), ("東京",)]),
        ("select item, reason from rejected_text", [("x", "too long")]),
        ("select run, kind from runs order by run", [("one", "pretrain"), ("two", "pretrain")]),
        ("select run, max(step) from metrics group by run order by run", [("one", 2), ("two", 2)]),
        ("select validation_score from metrics where run = 'one' order by step", [(None,), (0.5,)]),
        ("select max(array_cosine_similarity(pooled::float[4], [1, 0, 0, 0]::float[4])) from prompts", [(1.0,)]),
        ("with x as (select 1 as a) select * from x", [(1,)]),
        ("from runs select count(*);", [(2,)]),
        ("pivot metrics on step using count(*) group by run order by run", [("one", 1, 1), ("two", 1, 1)]),
    ],
)  # fmt: skip
def test_questions_are_answered(workspace: Workspace, query: str, expected: list[tuple[object, ...]]) -> None:
    assert ask(connect(workspace), query).rows() == expected


def test_stores_named_by_the_caller(workspace: Workspace, tmp_path: Path) -> None:
    elsewhere = Workspace(tmp_path / "elsewhere")
    answer = ask(connect(elsewhere.with_stores(workspace.prompts, None)), "select count(*) from prompts")
    assert answer.rows() == [(3,)]


@pytest.mark.parametrize("query", ["", ";", " ; ; ", "-- nothing"])
def test_no_query_is_one_line(workspace: Workspace, query: str) -> None:
    with pytest.raises(UserError, match="the query is empty"):
        ask(connect(workspace), query)


def test_one_broken_run_is_named_and_the_others_are_shown(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("torn", '{"kind": "pre'), ("list", "[]")):
        (workspace.runs / name).mkdir()
        (workspace.runs / name / RUN_FILE).write_text(text)
    with (workspace.runs / "two" / METRICS_FILE).open("a") as stream:
        stream.write('{"step": 3, "lo\n{"step": 4, "loss": 1.0}\n{"step": 5, ')
    connection = connect(workspace)
    assert ask(connection, "select run from runs order by run").rows() == [("one",), ("two",)]
    steps = ask(connection, "select step from metrics where run = 'two' order by step").rows()
    assert steps == [(1,), (2,), (4,)]
    told = capfd.readouterr().err
    assert str(workspace.runs / "torn" / RUN_FILE) in told
    assert str(workspace.runs / "list" / RUN_FILE) in told
    assert f"1 lines of {workspace.runs / 'two' / METRICS_FILE}" in told


def test_a_damaged_store_or_table_is_named_and_the_rest_is_shown(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    (workspace.prompts / QUARANTINE_FILE).write_bytes(b"no parquet")
    assert ask(connect(workspace), "select count(*) from prompts").rows() == [(3,)]
    assert QUARANTINE_FILE in capfd.readouterr().err
    (workspace.prompts / "part-00000.parquet").write_bytes(b"short")
    assert ask(connect(workspace), "select count(*) from runs").rows() == [(2,)]
    assert "part-00000.parquet" in capfd.readouterr().err


def test_a_table_and_a_json_object_of_many_blocks(workspace: Workspace) -> None:
    connection = connect(workspace)
    query = "select i, case when i = 1 then 'nan'::double else 0.5 end as x from range(2500) t(i)"
    lines = list(table_lines(["i", "x"], ask(connection, query).blocks))
    assert lines[:4] == ["  i    x", "---  ---", "  0  0.5", "  1  nan"]
    assert lines[-1] == "2499  0.5"
    value = json.loads("".join(json_pieces(ask(connection, query), {"command": "sql"})))
    assert (value["command"], value["rows"], value["columns"]) == ("sql", 2500, ["i", "x"])
    assert value["result"][:2] == [[0, 0.5], [1, None]]
    assert json.loads("".join(json_pieces(ask(connection, "select 1 where false"), {})))["result"] == []


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_large_result_is_never_held_in_memory(workspace: Workspace, form: list[str]) -> None:
    code = (
        "import resource, sys; from dptr.cli import run_command; code = run_command(sys.argv[1:]); "
        "print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    peaks = []
    for rows in (1000, 2_000_000):
        query = f"select i, i::varchar || ' and some more text' as t from range({rows}) t(i)"
        arguments = [sys.executable, "-c", code, "sql", query, *form, "--workspace", str(workspace.root)]
        ended = subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True)
        exit_code, peak = ended.stderr.split()[-2:]
        assert exit_code == "0"
        peaks.append(int(peak) / 1024)
    # As Python objects these rows take about 400 MB.
    assert peaks[1] - peaks[0] < 60


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_output_is_utf8_in_any_locale(workspace: Workspace, form: list[str]) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    query = "select label, 'né' as word from prompts where label in ('straße', '東京') order by label"
    ended = subprocess.run(
        [sys.executable, "-m", "dptr", "sql", query, *form, "--workspace", str(workspace.root)],
        capture_output=True,
        env={**os.environ, **plain},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert all(word in ended.stdout.decode("utf-8") for word in ("straße", "東京", "né"))
