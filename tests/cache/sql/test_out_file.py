"""Answers and views in files: what was asked for and nothing else, in four forms, in memory that does not grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from dptr.cache.file_names import MANIFEST_FILE, METRICS_FILE, RUN_FILE
from dptr.cache.sql import ask, connect, write_views
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.workspace import Workspace
from dptr.cli import run_command
from dptr.trainer.evaluate import keep_validation_predictions

QUERY = "select label, id, pooled from prompts order by label"


def sql(workspace: Workspace, *arguments: str | Path) -> int:
    return run_command(["sql", *map(str, arguments), "--workspace", str(workspace.root)])


def test_an_answer_in_each_form(workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for ending in ("csv", "json", "parquet", "txt"):
        assert sql(workspace, QUERY, "-o", tmp_path / f"answer.{ending}") == 0
        assert capsys.readouterr().out == f"3 rows in {tmp_path / f'answer.{ending}'}\n"
    lines = (tmp_path / "answer.csv").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["label,id,pooled", 'straße,1,"[0.0, 1.0, 0.0, 0.0]"']
    rows = json.loads((tmp_path / "answer.json").read_text(encoding="utf-8"))
    assert rows == pq.read_table(tmp_path / "answer.parquet").to_pylist()
    assert rows[2] == {"label": "東京", "id": 2, "pooled": [0, 0, 1, 0]}
    assert len((tmp_path / "answer.txt").read_text(encoding="utf-8").splitlines()) == 5
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"answer.{ending}" for ending in ("csv", "json", "parquet", "txt")),
        workspace.root.name,
    }


def test_a_form_on_stdout(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert sql(workspace, "select 1 as a, 'x,y' as b, null as c", "--format", "csv") == 0
    assert capsys.readouterr().out == 'a,b,c\n1,"x,y",\n'
    assert sql(workspace, "select 1 as a, 'nan'::double as b", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == [{"a": 1, "b": None}]
    assert sql(workspace, "select 1 where false", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["select 1", "--format", "parquet"], "-o FILE.parquet"),
        (["select 1", "-o", "answer"], "--format"),
        (["-o", "answer.csv"], "no query"),
        (["select 1", "--open", "views.duckdb"], "Give either"),
        (["select 1 as a, 2 as a", "-o", "answer.json"], "two columns are called a"),
        (["select 1 as a, 2 as a", "-o", "answer.parquet"], "two columns are called a"),
        (["select nothing", "-o", "answer.csv"], "DuckDB"),
    ],
)
def test_what_cannot_be_written_leaves_no_file(
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sql(workspace, *arguments) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [workspace.root.name]


@pytest.mark.parametrize("option", ["-o", "--open"])
def test_nothing_of_a_store_or_a_run_is_replaced(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "linked.csv").symlink_to(workspace.prompts / MANIFEST_FILE)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for place in (
        workspace.prompts / MANIFEST_FILE,
        workspace.prompts / "part-00000.parquet",
        workspace.runs / "one" / RUN_FILE,
        tmp_path / "linked.csv",
    ):
        query = ["select 1", "--format", "csv"] if option == "-o" else []
        assert sql(workspace, *query, option, place) == 2, place
        assert "Name another" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("query", ["copy (select 1) to 'x'", "with x as (copy (select 1) to 'x') select 1"])
def test_a_query_that_writes_is_rejected_with_a_file_named_too(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for ending in ("csv", "parquet"):
        assert sql(workspace, query, "-o", f"answer.{ending}") == 2
    assert [path.name for path in tmp_path.iterdir()] == [workspace.root.name]


def test_a_file_of_views_answers_other_programs(workspace: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "views.duckdb"
    assert sql(workspace, "--open", out) == 0
    here = connect(workspace)
    with duckdb.connect(str(out), read_only=True) as there:
        for query in (
            "select label from prompts order by id",
            "select run, kind from runs order by run",
            "select run, step, loss from metrics order by run, step",
            "select run, ground_truth, prediction from predictions order by run",
            "from nearest('street', 2)",
            "from nearest_crops('street', 1)",
        ):
            assert there.execute(query).fetchall() == ask(here, query).rows(), query
        assert there.execute("select run, prediction from predictions order by run").fetchall() == [
            ("one", "one"),
            ("two", "two"),
        ]


def test_a_file_that_is_there_is_not_taken_for_views(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with duckdb.connect(str(tmp_path / "mine.duckdb")) as mine:
        mine.execute("create table precious as select 42 as answer")
    assert sql(workspace, "--open", tmp_path / "mine.duckdb") == 2
    assert "exists" in capsys.readouterr().err
    with duckdb.connect(str(tmp_path / "mine.duckdb"), read_only=True) as mine:
        assert mine.execute("from precious").fetchall() == [(42,)]


def test_a_question_for_what_is_nearest_says_nothing_else(workspace: Workspace) -> None:
    asked = [sys.executable, "-m", "dptr", "sql", "from nearest('street', 2)", "--workspace", str(workspace.root)]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "straße" in done.stdout


def test_likeness(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    connection = connect(workspace)
    pairs = "select similarity(a.pooled, b.pooled) from prompts a, prompts b where a.id = 0 order by b.id"
    assert ask(connection, pairs).rows() == [(1.0,), (0.0,), (0.0,)]
    assert [row[1] for row in ask(connection, "from nearest('street', 10)").rows()] == ["straße", "東京"]
    assert ask(connection, "select image, similarity from nearest_crops('東京', 1)").rows() == [("東京", 1.0)]
    assert sql(workspace, "from nearest('streat')") == 2
    assert "no prompt has the label streat" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_large_answer_is_never_held_in_memory(workspace: Workspace, tmp_path: Path, ending: str) -> None:
    code = (
        "import resource, sys; from dptr.cli import run_command; code = run_command(sys.argv[1:]); "
        "print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    peaks = []
    for rows in (1000, 80_000):
        query = f"select i, repeat(i::varchar, 450) as t from range({rows}) t(i)"
        arguments = ["sql", query, "-o", str(tmp_path / f"x.{ending}"), "--workspace", str(workspace.root)]
        ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        exit_code, peak = ended.stderr.split()[-2:]
        assert exit_code == "0"
        peaks.append(int(peak) / 1024)
    # These rows take 180 MB, in Arrow and as Python objects alike.
    assert peaks[1] - peaks[0] < 90


@pytest.mark.parametrize("root", ["w*s", "wxs", "a?", "ab", "r[1]", "r1", "[!a]", "b\\c"])
def test_names_that_are_patterns_are_names(tmp_path: Path, root: str) -> None:
    runs = ["r1", "r[1]", "w*s", "wxs", "a?", "ab", "**", "{a,b}"]
    for each in {root, "wxs", "ab", "r1", "b"}:
        for run in runs:
            folder = tmp_path / each / "runs" / run
            folder.mkdir(parents=True)
            checksummed.write_json(folder / RUN_FILE, {"kind": "finetune", "name": each + run})
            (folder / METRICS_FILE).write_text(json.dumps({"step": 1, "name": each + run}) + "\n")
            keep_validation_predictions(folder, ["word"], [each + run])
    workspace, out = Workspace(tmp_path / root), tmp_path / "views.duckdb"
    expected = sorted((run, root + run) for run in runs)
    write_views(workspace, out)
    with duckdb.connect(str(out), read_only=True) as there:
        for table, column in (("runs", "name"), ("metrics", "name"), ("predictions", "prediction")):
            query = f"select run, {column} from {table} order by all"
            assert ask(connect(workspace), query).rows() == expected
            if root != "b\\c" or table != "predictions":  # DuckDB takes a backslash before a pattern for a separator
                assert there.execute(query).fetchall() == expected


def test_a_name_that_a_file_of_views_cannot_give_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "b\\c" / "runs" / "a?"
    folder.mkdir(parents=True)
    checksummed.write_json(folder / RUN_FILE, {"kind": "finetune"})
    keep_validation_predictions(folder, ["word"], ["word"])
    assert write_views(Workspace(tmp_path / "b\\c"), tmp_path / "views.duckdb") == ["runs"]
    assert "skipped: predictions" in capsys.readouterr().err


def test_the_shell_of_duckdb_opens_where_it_is_installed(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    shell = tmp_path / "bin" / "duckdb"
    shell.write_text(f'#!/bin/sh\n[ -f "$2" ] && echo "$1" > {tmp_path / "opened"}\n')
    shell.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shell.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert sql(workspace) == 0
    assert (tmp_path / "opened").read_text() == "-readonly\n"
