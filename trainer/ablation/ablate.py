"""Run a grid seed by seed, pre-trainings before trials; what an earlier run finished is taken as it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dptr.cache.errors import DptrError, UserError
from dptr.cache.file_names import ABLATION_ROWS
from dptr.cache.progress import note
from dptr.cache.stores.lock import locked
from dptr.cache.word_images.dataset import WordImages
from dptr.cache.workspace import Workspace
from dptr.trainer.ablation.arms import Plan, Trial, plan
from dptr.trainer.ablation.crops import fingerprint
from dptr.trainer.ablation.grid import Grid
from dptr.trainer.ablation.rows import Row, read_rows, write_rows
from dptr.trainer.ablation.side_by_side import run_all
from dptr.trainer.ablation.trial import run_pretraining, run_trial


@dataclass(frozen=True)
class AblationSummary:
    """What an ablation came to: ``trials`` in all, ``computed`` this time, and its rows, arm by arm."""

    out: Path
    trials: int
    computed: int
    seconds: float
    rows: list[Row]


def ablate(grid: Grid, name: str, origin: str, workspace: Workspace, device: str, jobs: int = 1) -> AblationSummary:
    """Run what is missing of a grid, keeping the rows of every trial as soon as it is done.

    Args:
        grid: arms and seeds. name: of the ablation, and of its folder under ``ablations``.
        origin: where the grid was read, for messages.
        workspace: holds the stores, and gets the rows.
        device: where to train. jobs: trials at once.

    Raises:
        UserError: a mistake in the grid, or trials failed; the others' rows are kept.
        DamagedStore: stores do not belong together.
    """
    started = time.monotonic()
    folder = workspace.ablations / name
    wanted = plan(grid, origin, workspace)
    tests = {test: fingerprint(WordImages.open_as_written([Path(path)])) for test, path in grid.tests.items()}
    with locked(folder):
        done = _known(read_rows(folder / ABLATION_ROWS), wanted, tests)
        missing = [trial for trial in wanted.trials if trial not in done]
        note(f"{name}: {len(wanted.trials)} trials, {len(done)} of them done before")
        failed: dict[Path | None, str] = {}
        # Seed by seed: the first comparison is there before the last pre-training has begun.
        for seed in grid.seeds:
            own = [trial for trial in missing if trial.seed == seed]
            failed |= _pretrain(wanted, own, device, jobs)
            for trial, result in _run_trials(own, failed, folder / "speeds", device, jobs):
                if isinstance(result, DptrError):
                    failed[trial.folder] = f"arm {trial.arm!r}, seed {trial.seed}: {result}"
                    continue
                done[trial] = result
                write_rows(folder / ABLATION_ROWS, _in_order(done, wanted, grid, name))
                readings = ", ".join(f"{row['test']} {row['accuracy']:.1%}" for row in result)
                note(f"{len(done)}/{len(wanted.trials)} {trial.arm}, seed {trial.seed}: {readings}")
        rows = _in_order(done, wanted, grid, name)
        # Also where nothing was missing: arms may have been renamed or left out.
        write_rows(folder / ABLATION_ROWS, rows)
    if failed:
        raise UserError(
            f"{len(failed)} runs of {name} failed: {'; '.join(failed.values())}",
            f"What was finished is in {folder / ABLATION_ROWS}; the same command goes on",
        )
    computed = len([trial for trial in missing if trial in done])
    return AblationSummary(folder, len(wanted.trials), computed, time.monotonic() - started, rows)


def _run_trials(
    trials: list[Trial], failed: dict[Path | None, str], speeds: Path, device: str, jobs: int
) -> Iterator[tuple[Trial, list[Row] | DptrError]]:
    """Run trials, those that start from another's run after it; none behind a run that ``failed``."""
    for after in sorted({trial.after for trial in trials}):
        ready = [trial for trial in trials if trial.after == after]
        runnable = [trial for trial in ready if failed.keys().isdisjoint((trial.start, *trial.earlier))]
        yield from run_all(partial(run_trial, speeds=speeds, device=device), runnable, jobs)


def _pretrain(wanted: Plan, missing: list[Trial], device: str, jobs: int) -> dict[Path | None, str]:
    """Make the pre-trained runs that missing trials start from; return those that failed, and why."""
    askers = {trial.start: f"arm {trial.arm!r}, seed {trial.seed}" for trial in reversed(missing)}
    needed = [each for each in wanted.pretrainings if each.folder in askers]
    return {
        each.folder: f"pre-training for {askers[each.folder]}: {result}"
        for each, result in run_all(partial(run_pretraining, device=device), needed, jobs)
        if isinstance(result, DptrError)
    }


def _known(rows: list[Row], wanted: Plan, tests: dict[str, str]) -> dict[Trial, list[Row]]:
    """Find the trials whose rows are all there: of the same run, on the same test images, by the same protocol."""
    by_identity = {(row["run"], row["test_sha256"], row["protocol"]): row for row in rows}
    found: dict[Trial, list[Row]] = {}
    for trial in wanted.trials:
        own = {test: by_identity.get((trial.key, sha256, trial.protocol)) for test, sha256 in tests.items()}
        complete = [{**row, "test": test} for test, row in own.items() if row is not None]
        if len(complete) == len(tests):
            found[trial] = complete
    return found


def _in_order(done: dict[Trial, list[Row]], wanted: Plan, grid: Grid, name: str) -> list[Row]:
    """All rows, arm by arm as the grid has them; names are those of now, whatever a run was called before."""
    order = list(grid.arms)
    trials = sorted(
        (trial for trial in wanted.trials if trial in done), key=lambda trial: (order.index(trial.arm), trial.seed)
    )
    return [
        {
            **row,
            "ablation": name,
            "arm": trial.arm,
            "seed": trial.seed,
            "base": trial.arm == grid.base,
            "against": grid.compared_with(trial.arm),
        }
        for trial in trials
        for row in done[trial]
    ]
