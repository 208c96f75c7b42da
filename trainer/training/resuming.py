"""Going on: from the last checkpoint, from the best one where the last is damaged, or from the start."""

from __future__ import annotations

from pathlib import Path

from dptr.cache.errors import DamagedStore
from dptr.cache.file_names import METRICS_FILE, STATE_FILE, TIMINGS_FILE
from dptr.cache.progress import note
from dptr.trainer.training import step_log
from dptr.trainer.training.checkpoint import CheckpointName, checkpoint_folder, find_checkpoint
from dptr.trainer.training.recording import CHECKPOINT_SECONDS
from dptr.trainer.training.state import TrainState


def resume(folder: Path, state: TrainState) -> None:
    """Restore the last checkpoint, or the best one where the last is damaged; a new run stays as it is.

    Raises:
        DamagedStore: the run has taken steps, and no checkpoint of it can be used.
    """
    problems: list[str] = []
    names: tuple[CheckpointName, ...] = ("last", "best")
    for name in names:
        checkpoint = checkpoint_folder(folder, name)
        found = find_checkpoint(checkpoint)
        if found is None:
            if checkpoint.exists():
                problems.append(f"{checkpoint / STATE_FILE} is missing")
            continue
        try:
            state.restore(found)
        except DamagedStore as error:
            problems.append(error.problem)
            continue
        if problems:
            note(f"{'; '.join(problems)}: goes on from {found}, at step {state.step}")
        return
    # Where no line says that one was saved, the run was killed before its first checkpoint.
    if kept := step_log.last_step(folder / TIMINGS_FILE, having=CHECKPOINT_SECONDS):
        problems.append(f"{folder / TIMINGS_FILE} names a checkpoint of step {kept}, and there is none")
    if problems:
        advice = f"Restore it from a copy, or move {folder} away to train from the start"
        raise DamagedStore("; ".join(problems), advice)
    if logged := step_log.last_step(folder / METRICS_FILE):
        note(f"{folder} reached step {logged} and was cut off before its first checkpoint: it starts anew")
