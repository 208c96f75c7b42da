"""Stores, runs and models of the first version still open: the archive was written by it and is never made again."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from dptr.cache.stores.neighbours import Neighbours
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cli import run_command
from dptr.trainer.report.report import matching_stores
from dptr.trainer.training.runs import Run

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "first_format.tar.xz"
SIZES = ["decoder.dim=32", "decoder.heads=2", "decoder.feed_forward=32", "decoder.layers=1"]
#: What recipe `tiny` said then and does not say now.
FORMER = ["decoder.kind=parseq", "pretrain.ema_decay=0"]
TRAINING = ["pretrain.batch_size=4", "pretrain.validate_every=2", "pretrain.checkpoint_every=2"]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first_format")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old(unpacked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unpacked, tmp_path / "old"))


def run(capsys: pytest.CaptureFixture[str], old: Path, *arguments: str) -> dict[str, Any]:
    code = run_command([*arguments, "--workspace", str(old / "dptr_data"), "--json", "--quiet"])
    said = capsys.readouterr()
    assert code == 0, said.err
    result: dict[str, Any] = json.loads(said.out.splitlines()[-1])
    return result


def test_stores_open_and_are_whole(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, bank = PromptStore(old / "dptr_data" / "prompts"), OrpBank(old / "dptr_data" / "orp")
    assert (len(store), len(bank), bank.tokens_per_crop) == (120, 4, 20)
    assert Neighbours.open(store.folder, bank).k == 2
    assert run(capsys, old, "verify")["rows"] == 4, "two stores, two runs"
    assert run(capsys, old, "mine-neighbours", "-k", "2")["computed"] == 0


def test_sql_asks_them(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for table, rows in (("prompts", 120), ("crops", 4), ("neighbours", 120), ("runs", 2)):
        assert run(capsys, old, "sql", f"select count(*) from {table}")["result"] == [[rows]]
    steps = run(capsys, old, "sql", "select run, max(step) from metrics group by run order by run")
    assert steps["result"] == [["finetuned", 4], ["pretrained", 4]]


def test_pretrain_goes_on_with_its_run(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [f"--set={change}" for change in SIZES + TRAINING + FORMER]
    folder = str(old / "dptr_data" / "runs" / "pretrained")
    again = run(capsys, old, "pretrain", "--steps", "4", *changes, "-o", folder, "--device", "cpu")
    assert (again["steps"], again["computed"]) == (4, 0)


def test_the_stores_that_a_run_remembers_are_known_again(old: Path) -> None:
    run = Run.load(old / "dptr_data" / "runs" / "pretrained")
    prompts, orp = old / "dptr_data" / "prompts", old / "dptr_data" / "orp"
    assert "encoder" in run.data["prompts"]
    assert run.data["prompts"] == PromptStore(prompts).manifest.former_fingerprint()
    assert matching_stores(run, [prompts, orp]) is not None


def test_a_model_reads(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, image = str(old / "finetuned.safetensors"), str(old / "word.jpg")
    assert run(capsys, old, "read", model, image, "--device", "cpu")["rows"] == 1
