"""The reproduction page, followed from top to bottom at toy size in an empty folder, and its scripts one by one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from dptr.cache.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "examples" / "reproduce"
PAGE = ROOT / "docs" / "reproduce.md"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import importlib

    return {
        name: importlib.import_module(name) for name in ("check_data", "estimate", "evaluate", "mlt_by_script", "toy")
    }


@pytest.fixture(scope="module")
def run(forked_python: str) -> Run:
    """Run one of the page's scripts in a folder."""

    def started(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        command = [forked_python, str(SCRIPTS / script), *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)

    return started


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_can_be_followed_from_top_to_bottom(tmp_path: Path, forked_python: str) -> None:
    """Each command of the page, in its order and in one shell, which stops at the first that fails."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    (tmp_path / "bin").mkdir()
    for name, starts in (("dptr", f"{forked_python} -m dptr"), ("python", forked_python)):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {starts} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    place = tmp_path / "empty"
    place.mkdir()
    environment = {**os.environ, "DPTR": str(ROOT), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    environment |= {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=place, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "35 of 35 data sets are as described" in done.stdout
    assert "8 of 8 data sets are as described" in done.stdout
    assert re.search(r"^IIIT5K +12 +99\.5 ", done.stdout, re.MULTILINE)
    assert re.search(r"^mean: six benchmarks +97\.45 ", done.stdout, re.MULTILINE)
    assert re.search(r"^mean: Union14M-Benchmark +- ", done.stdout, re.MULTILINE)
    assert re.search(r"^mean: BCTR +80\.70 ", done.stdout, re.MULTILINE)
    runs = sorted(path.parent.name for path in place.glob("runs/*/run.json"))
    assert runs == ["chinese", "chinese_pretrained", "finetuned", "pretrained"]
    for name in ("pretrained", "chinese_pretrained"):
        bank = json.loads(
            (place / ("chinese" if "chinese" in name else "dptr_data") / "orp" / "manifest.json").read_text()
        )
        assert bank["identity"]["crops"]["kind"] == "whole"


@pytest.fixture(scope="module")
def toy(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    assert run("toy.py", "toy", cwd=folder).returncode == 0
    return folder / "toy"


def test_a_missing_set_another_count_and_another_hash_differ_in_error(run: Run, toy: Path, tmp_path: Path) -> None:
    def check(*more: object) -> tuple[int, str]:
        done = run("check_data.py", data / "data", "--sets", data / "datasets.toml", *more, cwd=data)
        return done.returncode, done.stdout

    data = tmp_path / "toy"
    shutil.copytree(toy, data)
    hashes = ("--hashes", tmp_path / "hashes.json", "--only", "test/")
    code, said = check(*hashes)
    assert (code, "8 of 8 data sets" in said) == (0, True)
    shutil.rmtree(data / "data/test/SVT")
    shutil.rmtree(data / "data/test/CUTE80")
    shutil.copytree(data / "data/synth/ST", data / "data/test/CUTE80")
    shutil.rmtree(data / "data/test/SVTP")
    shutil.copytree(data / "data/test/IIIT5k", data / "data/test/SVTP")
    code, said = check(*hashes)
    assert (code, "5 of 8 data sets" in said) == (1, True)
    for line in (r"SVT +12 +- +missing", r"CUTE80 +12 +24 +other", r"SVTP +12 +12 +other hash"):
        assert re.search(line, said), line


def test_crops_are_read_once_and_by_the_sets_own_protocol(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands = []

    def evaluated(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        score = {"accuracy": 0.5, "words": 2}
        return SimpleNamespace(stdout=json.dumps({"sets": {command[5]: {"36": score, "chinese": score}}}))

    monkeypatch.setattr(subprocess, "run", evaluated)
    for protocol in ("field", "chinese"):
        found = scripts["evaluate"].measured("run", tmp_path, [{"path": "SVT"}], protocol)
        assert found == {"SVT": {"accuracy": 0.5, "words": 2}}
        assert commands[-1][-4:] == ["--protocol", protocol, "--single-view", "--json"]


def test_words_of_mlt_are_parted_by_script(run: Run, toy: Path, tmp_path: Path) -> None:
    done = run("mlt_by_script.py", toy / "data/mlt/MLT19", "out", cwd=tmp_path)
    assert re.findall(r"^(\w+): (\d+) words", done.stdout, re.MULTILINE) == [("Chinese", "12"), ("Latin", "12")]


def test_a_line_of_ground_truth_without_its_three_parts_is_named(
    scripts: dict[str, ModuleType], tmp_path: Path
) -> None:
    (tmp_path / "gt.txt").write_text("word_1.png,Latin,a,b\nword_2.png,Latin\n")
    words = scripts["check_data"].mlt_words(tmp_path)
    assert next(words) == ("word_1.png", "Latin", "a,b")
    with pytest.raises(UserError, match=r"gt\.txt, line 2"):
        next(words)


def test_counts_on_the_page_are_those_that_are_checked(scripts: dict[str, ModuleType]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    sets = scripts["check_data"].data_sets(SCRIPTS / "datasets.toml")
    totals = {"MJSynth": 8_919_241, "Union14M-L-Filter": 3_224_143, "U14M": 407_888}
    for name, total in totals.items():
        assert sum(one["samples"] for one in sets if one["name"].startswith(name)) == total
        assert f"{total:,}" in page
    bctr = [one for one in sets if one["name"].startswith("BCTR")]
    for kind in (True, False):
        assert f"{sum(one['samples'] for one in bctr if ('test' in one) == kind):,}" in page
    for one in sets:
        if one["path"].startswith(("test/", "OST", "mlt/", "synth/ST")):
            assert f"{one['samples']:,}" in page, one["name"]


def test_the_costs_on_the_page_are_those_that_are_computed(scripts: dict[str, ModuleType]) -> None:
    page, estimate = PAGE.read_text(encoding="utf-8"), scripts["estimate"]
    said = [estimate.disk(), estimate.memory(), estimate.hours(989e12 * 0.35)]
    for table in said:
        for line in table.splitlines()[2:]:
            cells = re.split(r"  +", line.strip())
            assert "| " + " | ".join(cells) + " |" in page, cells


def gigaflops(estimate: ModuleType, stage: str, *arguments: object) -> float:
    return float(estimate.operations(estimate.stages(*arguments)[stage][2])) / 1e9


def test_operations_of_pre_training_are_those_counted_by_hand(scripts: dict[str, ModuleType]) -> None:
    """Six layers of 512; 6 orders of 8 positions, the end missing from 4 in the last layer; 78 tokens of memory.

    A projection of 512 by 512 is one, the feed-forward of a position eight.
    """
    memory, rows, counted, once = 2 * 78, 6 * 8, 6 * 8 - 4, 8
    query, content = 2 * rows + 2 * rows + 8 * rows, 2 * rows + 2 * rows + 8 * rows
    # All orders share the first layer's content: its keys, values and queries, and the queries' queries, are made once.
    first = memory + 2 * once + (query - rows + once) + (content - rows + once)
    between = memory + 2 * rows + query + content
    last = memory + 2 * rows + (2 * rows + 2 * counted + 8 * counted)
    projections = first + 4 * between + last
    # Backwards twice as many, but none towards the memory, which is data.
    products = 512**2 * (3 * projections - 6 * memory) + 3 * 512 * 95 * counted
    # Scores and mixing: two products of 512 for each pair of query and key, content in all layers but the last.
    attention = 3 * 2 * 512 * (rows * (once + 78) * 10 + rows * once + counted * 78)
    assert gigaflops(scripts["estimate"], "stage 2") == pytest.approx(2 * (products + attention) / 1e9, rel=1e-3)


def test_arms_as_long_as_text_cost_as_much(scripts: dict[str, ModuleType]) -> None:
    """Steps of the grid's arms are those that take as many operations as pre-training and fine-tuning on text."""
    estimate = scripts["estimate"]
    text, images = (gigaflops(estimate, stage) for stage in ("stage 2", "stage 3"))
    content = gigaflops(estimate, "stage 2", (), estimate.CONTENT)
    without_fmu = gigaflops(estimate, "stage 3", ["fmu.kind=none"])
    expected = {
        "from scratch, as long": 100_000 + 390_000 * text / images,
        "images of MJ and ST": 390_000 * text / images,
        "no FMU, as long": 100_000 * images / without_fmu,
        "content, as long": 390_000 * text / content,
    }
    arms = tomllib.loads((ROOT / "examples/ablations/paper.toml").read_text(encoding="utf-8"))["arms"]
    steps = {name: int(re.findall(r"steps=(\d+)", " ".join(arms[name]["set"]))[0]) for name in expected}
    assert steps == pytest.approx(expected, rel=1e-3)
