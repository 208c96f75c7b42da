"""A small training for tests of the loop: twelve steps of a network of four layers, with everything a run may have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dptr.trainer.recipe import TrainingSettings
from dptr.trainer.training import checkpoint, loop


class SmallTraining:
    """Tasks and runs of the small training."""

    def settings(self, **changes: Any) -> TrainingSettings:
        made = TrainingSettings(
            steps=12, batch_size=4, learning_rate=0.01, log_every=2, validate_every=4, checkpoint_every=3, ema_decay=0.5
        )
        return made.model_copy(update=changes)

    def batch(self, number: int) -> Tensor:
        return torch.randn(4, 3, generator=torch.Generator().manual_seed(number))

    def task(self, batch: Callable[[int], Tensor] | None = None) -> loop.Task[Tensor]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1), nn.BatchNorm1d(1))
        return loop.Task(
            model=model,
            batch=batch or self.batch,
            loss=lambda rows: model(rows).square().mean(),
            validate=lambda network: {"score": -float(network(self.batch(999)).square().mean().detach())},
            groups=[loop.ParameterGroup(list(model.parameters()))],
        )

    def run(
        self, folder: Path, settings: TrainingSettings | None = None, task: loop.Task[Tensor] | None = None
    ) -> loop.TrainState:
        folder.mkdir(exist_ok=True)
        return loop.run(folder, task or self.task(), settings or self.settings(), torch.device("cpu"))

    def saved(self, folder: Path) -> tuple[dict[str, Tensor], list[str]]:
        """The last checkpoint's weights, and the lines of the log."""
        weights = checkpoint.load_tensors(folder / "checkpoints" / "last", "model")
        return weights, (folder / "metrics.jsonl").read_text().splitlines()

    def is_as(self, folder: Path, whole: tuple[dict[str, Tensor], list[str]]) -> bool:
        """Whether a run's weights are those of another to the bit, and its log is the same."""
        weights, lines = self.saved(folder)
        return lines == whole[1] and all(torch.equal(weights[name], whole[0][name]) for name in whole[0])

    def cut_at(self, number: int, error: type[BaseException]) -> Callable[[int], Tensor]:
        """Batches of which one raises an error."""

        def batch(asked: int) -> Tensor:
            if asked == number:
                raise error
            return self.batch(asked)

        return batch


@pytest.fixture(scope="session")
def training() -> SmallTraining:
    return SmallTraining()


@pytest.fixture(scope="session")
def whole(training: SmallTraining, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[str]]:
    """Weights and log of the small training, never cut."""
    folder = tmp_path_factory.mktemp("whole")
    training.run(folder)
    return training.saved(folder)
