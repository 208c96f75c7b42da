"""Ablations: run every configuration of a grid with every seed through `dptr … --json`, and compare them in pairs.

    python examples/ablations/ablate.py examples/ablations/tiny.toml --workspace dptr_data

An interrupted grid resumes with the same command: dptr resumes the interrupted training, and trials in the rows file
(`WORKSPACE/ablations/NAME.jsonl`, a line for each configuration, seed and test set) are not run again. A trial is
identified by its commands; remove the rows file when stores or crops behind the same path change.

A grid is a TOML file, paths in it relative to the current folder:

    recipe = "tiny"                # of every training
    seeds = [1, 2, 3]
    base = "from scratch"          # the configuration that others are compared with
    protocol = "36"                # 36, 62, 94: the characters that count, or "exact"
    set = ["decoder.dim=128"]      # --set of every training; keys of [pretrain] reach pretrain only, and so on
    pretrain = ["--prompts", "P"]  # arguments of every `dptr pretrain`
    finetune = ["CROPS"]           # arguments of every `dptr finetune`
    evaluate = []                  # arguments of every `dptr evaluate`

    [tests]                        # name -> labelled crops, not used for training
    "IIIT5K" = "real/iiit5k-validation.lmdb"

    [arms."from scratch"]
    start = "none"                 # as `finetune --from`; "pretrain": pre-train first with these settings;
                                   # "arm:NAME": another configuration's result with the same seed
    [arms."pre-trained"]
    start = "pretrain"
    set = ["noise.ratio=0.2"]      # added to the grid's, as are pretrain, finetune and evaluate
    against = "from scratch"       # compared with this instead of the base
    train = false                  # evaluate the start without fine-tuning: zero-shot (memory.kind=pooled)

``--processes 2`` trains with torchrun; the grid's ``set`` then has ``pretrain.accumulate=2`` and the like, see
docs/several_machines.md.

Configurations with the same pre-training command share its run. Intervals are of 95 %: over seeds by the paired t test,
over test images by the paired bootstrap.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dptr.cache.errors import UserError, run_script
from dptr.cache.text.charset import Charset
from dptr.trainer.metrics import to_ascii

Row = dict[str, Any]
Command = Callable[[Sequence[str]], dict[str, Any]]  # arguments of dptr -> the object that it prints

_ARM_KEYS = {"start", "set", "pretrain", "finetune", "evaluate", "against", "train"}
_GRID_KEYS = {"recipe", "seeds", "base", "protocol", "set", "pretrain", "finetune", "evaluate", "tests", "arms"}
_HELP = "See the top of examples/ablations/ablate.py"
_RESAMPLES = 10_000
_TIMES = ("steps", "seconds", "pretrain_seconds")
_COLUMNS = ["test", "arm", "accuracy, %", "compared with", "points", "over seeds", "over images", "words", "seeds"]
#: Sections that one of the two stages does not read; a key of theirs would only make other runs of the same training.
_NOT_OF = {"pretrain": {"encoder", "fmu", "finetune"}, "finetune": {"noise", "pretrain"}}


@dataclass(frozen=True)
class Arm:
    """A way of training: see the top of this file."""

    name: str
    start: str
    against: str
    train: bool
    recipe: str
    set: list[str]
    pretrain: list[str]
    finetune: list[str]
    evaluate: list[str]


@dataclass
class Grid:
    """Arms by name, the seeds and tests of all of them."""

    arms: dict[str, Arm]
    seeds: list[int]
    tests: dict[str, str]
    protocol: str


def load_grid(path: Path) -> Grid:
    """Read a grid.

    Raises:
        UserError: it is none; the error names the key.
    """
    try:
        grid = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no grid: {error}", _HELP) from error
    _require_known(grid, _GRID_KEYS, str(path))
    for key in ("arms", "tests", "seeds"):
        if not grid.get(key):
            raise UserError(f"{path} names no {key}", _HELP)
    base = grid.get("base", next(iter(grid["arms"])))
    arms: dict[str, Arm] = {}
    for name, own in grid["arms"].items():
        _require_known(own, _ARM_KEYS, f"{path}, arm {name!r}")
        lists = {key: [*grid.get(key, []), *own.get(key, [])] for key in ("set", "pretrain", "finetune", "evaluate")}
        start, against = own.get("start", "none"), own.get("against", base)
        arms[name] = Arm(name, start, against, own.get("train", True), grid.get("recipe", "tiny"), **lists)
    for arm in arms.values():
        for named in [arm.against, *([arm.start[4:]] if arm.start.startswith("arm:") else [])]:
            if named not in arms:
                raise UserError(f"{path}, arm {arm.name!r} names an arm {named!r}", f"There are: {', '.join(arms)}")
        if not arm.train and arm.start == "none":
            raise UserError(f"{path}, arm {arm.name!r} trains nothing and has no start", "Name a start")
    return Grid(arms, list(grid["seeds"]), dict(grid["tests"]), grid.get("protocol", "36"))


def _require_known(table: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise UserError(f"unknown key {unknown[0]!r} in {where}", f"There are: {', '.join(sorted(known))}")


@dataclass
class Trials:
    """Runs trials in a workspace; ``dptr`` runs a command, ``done`` holds what each command gave."""

    workspace: Path
    grid: Grid
    dptr: Command
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    def key(self, arm: Arm, seed: int, test: str) -> str:
        """Return a hash of the commands that a trial runs, and of how it is scored."""
        fixed = [self._commands(arm, seed), arm.evaluate, self.grid.tests[test], self.grid.protocol]
        return hashlib.sha256(json.dumps(fixed).encode()).hexdigest()[:12]

    def rows(self, arm: Arm, seed: int, tests: Sequence[str]) -> list[Row]:
        """Train an arm with a seed and read ``tests`` with it: a row for each."""
        results = [self._run(command) for command in self._commands(arm, seed)]
        run = results[-1]["out"]
        seconds = [sum(result["seconds"] for result in results if result["command"] == stage) for stage in _NOT_OF]
        rows: list[Row] = []
        for test in tests:
            path = self.grid.tests[test]
            self.dptr(["evaluate", run, path, *arm.evaluate])
            where = f"run = {_quoted(Path(run).name)} and data = {_quoted(path)}"
            query = f"select key, ground_truth, prediction from predictions where {where} order by key"
            read = self.dptr(["sql", query])["result"]
            scored = {
                key: is_right(ground_truth, prediction, self.grid.protocol) for key, ground_truth, prediction in read
            }
            counted = {key: int(right) for key, right in scored.items() if right is not None}
            if not counted:
                raise UserError(f"no word of {path} counts under protocol {self.grid.protocol}", "Use another protocol")
            images, right = list(counted), list(counted.values())
            row = {"key": self.key(arm, seed, test), "arm": arm.name, "seed": seed, "test": test, "run": run}
            row |= {"steps": results[-1]["steps"], "seconds": seconds[1], "pretrain_seconds": seconds[0]}
            rows.append(row | {"accuracy": sum(right) / len(right), "images": images, "right": right})
        return rows

    def _run(self, command: list[str]) -> dict[str, Any]:
        if (name := json.dumps(command)) not in self.done:
            self.done[name] = self.dptr(command)
        return self.done[name]

    def _commands(self, arm: Arm, seed: int) -> list[list[str]]:
        """Return the trainings of an arm, each of which starts from the one before."""
        start, before = arm.start, list[list[str]]()
        if start.startswith("arm:"):
            before = self._commands(self.grid.arms[start[4:]], seed)
        elif start == "pretrain":
            before = [self._training("pretrain", arm, seed, arm.pretrain)]
        if before:
            start = before[-1][before[-1].index("-o") + 1]
        if not arm.train:
            return before
        return [*before, self._training("finetune", arm, seed, ["--from", start, *arm.finetune])]

    def _training(self, stage: str, arm: Arm, seed: int, arguments: list[str]) -> list[str]:
        changes = [f"--set={change}" for change in arm.set if change.partition(".")[0] not in _NOT_OF[stage]]
        command = [stage, "--recipe", arm.recipe, "--seed", str(seed), *changes, *arguments]
        digest = hashlib.sha256(json.dumps(command).encode()).hexdigest()[:12]
        return [*command, "-o", str(self.workspace / "runs" / f"{stage}-{digest}")]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def is_right(ground_truth: str, prediction: str | None, protocol: str) -> bool | None:
    """Return whether a word was read, as the protocol compares; None where it has nothing to compare."""
    if protocol == "exact":
        return ground_truth == prediction
    project = Charset.named(protocol).project
    wanted = project(to_ascii(ground_truth))
    return None if not wanted else wanted == project(to_ascii(prediction or ""))


def compare(grid: Grid, rows: Sequence[Row]) -> list[list[str]]:
    """Return a line of the table for each test set and arm, ``all`` test sets last."""
    found = {(row["arm"], row["seed"], row["test"]): row for row in rows}
    lines = []
    groups = [(test, [test]) for test in grid.tests] + [("all", list(grid.tests))] * (len(grid.tests) > 1)
    for name, tests in groups:
        for arm in grid.arms.values():
            mine = _right(found, grid, arm.name, tests)
            words, accuracies = mine.shape[1], mine.mean(1)
            spread = f" ± {100 * accuracies.std(ddof=1):.2f}" if len(accuracies) > 1 else ""
            cells = [name, arm.name, f"{100 * accuracies.mean():.2f}{spread}"]
            if arm.against == arm.name:
                cells += ["", "", "", ""]
            else:
                other = _right(found, grid, arm.against, tests)
                cells += [arm.against, f"{100 * (mine - other).mean():+.2f}", *_intervals(mine, other)]
            times = [np.mean([found[arm.name, seed, tests[0]][key] for seed in grid.seeds]) for key in _TIMES]
            lines.append([*cells, f"{words:,}", str(len(grid.seeds)), *(f"{value:,.0f}" for value in times)])
    return lines


def _right(found: dict[tuple[str, int, str], Row], grid: Grid, arm: str, tests: list[str]) -> NDArray[np.float64]:
    """Return 1 where an arm read an image, else 0, of shape (seeds, images)."""
    first = next(iter(grid.arms))
    for test in tests:
        images = [found[name, seed, test]["images"] for name in (first, arm) for seed in grid.seeds]
        if any(other != images[0] for other in images):
            raise UserError(f"test set {test!r} changed between trials", "Remove the rows file and run the grid again")
    by_seed = [[right for test in tests for right in found[arm, seed, test]["right"]] for seed in grid.seeds]
    return np.array(by_seed, np.float64)


def _intervals(mine: NDArray[np.float64], other: NDArray[np.float64]) -> list[str]:
    """Return the intervals of the difference between two arms, each (seeds, images), over seeds and over images."""
    over_seeds = "one seed"
    if len(mine) > 1:
        accuracies = mine.mean(1), other.mean(1)
        constant = np.ptp(accuracies[0] - accuracies[1]) == 0
        low, high = [0.0, 0.0] if constant else stats.ttest_rel(*accuracies).confidence_interval(0.95)
        over_seeds = "no spread" if constant else f"{100 * low:+.2f} to {100 * high:+.2f}"
    by_image = (mine - other).mean(0)
    if np.ptp(by_image) == 0:
        return [over_seeds, "no spread"]
    drawn = stats.bootstrap(
        (by_image,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(0), batch=100
    ).confidence_interval
    return [over_seeds, f"{100 * drawn.low:+.2f} to {100 * drawn.high:+.2f}"]


def run(grid: Grid, rows_file: Path, workspace: Path, dptr: Command) -> list[Row]:
    """Run the trials that the rows file lacks, seed by seed, and return the rows of all."""
    rows_file.parent.mkdir(parents=True, exist_ok=True)
    lines = rows_file.read_text(encoding="utf-8").splitlines(keepends=True) if rows_file.exists() else []
    # A kill may leave half of the last line.
    whole = [line for line in lines if line.endswith("\n")]
    if whole != lines:
        rows_file.write_text("".join(whole), encoding="utf-8")
    known = {row["key"]: row for row in map(json.loads, whole)}
    trials, rows = Trials(workspace, grid, dptr), list[Row]()
    for seed in grid.seeds:
        for arm in grid.arms.values():
            missing = [test for test in grid.tests if trials.key(arm, seed, test) not in known]
            for row in trials.rows(arm, seed, missing) if missing else []:
                with rows_file.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(row) + "\n")
                known[row["key"]] = row
            # Another arm may have the same commands.
            rows += [known[trials.key(arm, seed, test)] | {"arm": arm.name, "test": test} for test in grid.tests]
    return rows


def main() -> None:
    """Parse, run, print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--workspace", type=Path, default=Path("dptr_data"), help="folder of stores and runs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--processes", type=int, default=1, help="of each training, on this machine")
    arguments = parser.parse_args()
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.processes), "-m"]

    def dptr(command: Sequence[str]) -> dict[str, Any]:
        print("dptr", *command, file=sys.stderr)
        device = [] if command[0] == "sql" else ["--device", arguments.device]
        launcher = torchrun if arguments.processes > 1 and command[0] in _NOT_OF else []
        line = [sys.executable, "-m", *launcher, "dptr", *command, *device]
        line += ["--workspace", str(arguments.workspace), "--json"]
        printed = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
        result: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return result

    grid = load_grid(arguments.grid)
    rows_file = arguments.workspace / "ablations" / f"{arguments.grid.stem}.jsonl"
    rows = run(grid, rows_file, arguments.workspace, dptr)
    columns = [*_COLUMNS, *_TIMES]
    for cells in [columns, ["---"] * len(columns), *compare(grid, rows)]:
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    run_script(main)
