"""The loop: accumulation, patience, frozen parts, averages, workers, and what goes wrong in a step."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dptr.cache.errors import DamagedStore, UserError
from dptr.trainer.recipe import TrainingSettings
from dptr.trainer.training import checkpoint, loop
from dptr.trainer.training.checkpoint import load_state, load_tensors
from dptr.trainer.training.loop import load_batches, rate_factor, worker_death_as_user_error


def test_workers_change_nothing(tmp_path: Path, training: Any, whole: Any) -> None:
    training.run(tmp_path / "two", training.settings(workers=2))
    assert training.is_as(tmp_path / "two", whole)


def killed_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_is_one_line_and_other_errors_stay_what_they_are() -> None:
    with pytest.raises(UserError, match="worker process was killed"), worker_death_as_user_error():
        list(load_batches(killed_at_two, range(8), workers=1))
    with pytest.raises(RuntimeError, match="shapes"), worker_death_as_user_error():
        raise RuntimeError("shapes do not fit")


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path, training: Any) -> None:
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"could not write .*metrics\.jsonl"):
        training.run(tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_what_goes_wrong_with_the_data_is_one_line_from_a_worker_too(
    tmp_path: Path, workers: int, training: Any
) -> None:
    def batch(number: int) -> Tensor:
        if number == 3:
            raise DamagedStore("part-00007.arrow is cut short", "Repair it")
        return training.batch(number)

    with pytest.raises(DamagedStore) as caught:
        training.run(tmp_path / "run", training.settings(workers=workers), training.task(batch))
    assert str(caught.value) == "part-00007.arrow is cut short. Repair it"


def test_accumulation_equals_one_large_batch(tmp_path: Path, training: Any) -> None:
    def task(batch: Callable[[int], Tensor]) -> loop.Task[Tensor]:
        made = training.task(batch)
        made.model[1].p = 0.0
        made.model[3] = nn.Identity()  # its statistics are of a batch, not of a step
        return made

    def pairs(number: int) -> Tensor:
        return torch.cat([training.batch(2 * number), training.batch(2 * number + 1)])

    settings = training.settings(steps=4)
    training.run(tmp_path / "large", settings, task(pairs))
    training.run(tmp_path / "small", training.settings(steps=4, accumulate=2), task(training.batch))
    for one, other in zip(*(training.saved(tmp_path / name)[0].values() for name in ("large", "small")), strict=True):
        torch.testing.assert_close(one, other)


def test_patience_ends_a_run_that_no_longer_improves(tmp_path: Path, training: Any) -> None:
    task = training.task()
    scores = itertools.chain([1.0, 2.0], itertools.repeat(0.0))
    task.validate = lambda network: {"score": next(scores)}
    state = training.run(tmp_path / "run", training.settings(steps=100, validate_every=2, patience=6), task)
    assert (state.best_step, state.step) == (4, 10)
    assert load_state(tmp_path / "run" / "checkpoints" / "best")["step"] == 4
    again = training.run(tmp_path / "run", training.settings(steps=100, validate_every=2, patience=6))
    assert again.step == 10, "the same command takes no further step"


def test_a_parameter_that_no_group_trains_is_an_error(tmp_path: Path, training: Any) -> None:
    task = training.task()
    task.groups = [loop.ParameterGroup(list(task.model.parameters())[1:])]
    with pytest.raises(ValueError, match=r"never trained: 0\.weight"):
        training.run(tmp_path, task=task)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, training: Any) -> None:
    task = training.task()
    steps = itertools.count()
    task.loss = lambda rows: task.model(rows).mean() * (float("nan") if next(steps) >= 5 else 1.0)
    with pytest.raises(UserError, match=r"at step 6.*Lower the learning rate"):
        training.run(tmp_path / "run", training.settings(log_every=100, validate_every=100), task)
    assert load_state(tmp_path / "run" / "checkpoints" / "last")["step"] == 3


def test_no_weights_that_are_not_finite_become_the_best(tmp_path: Path, training: Any) -> None:
    """Between two steps that log or save, validation alone would see them."""
    task = training.task()
    steps = itertools.count()
    task.loss = lambda rows: task.model(rows).mean() * (float("nan") if next(steps) == 6 else 1.0)
    scores = itertools.count()
    task.validate = lambda network: {"score": float(next(scores))}
    with pytest.raises(UserError, match="at step 7 the loss"):
        training.run(tmp_path / "run", training.settings(log_every=50, validate_every=4, checkpoint_every=50), task)
    best = checkpoint.load_tensors(tmp_path / "run" / "checkpoints" / "best", "model")
    assert all(weight.isfinite().all() for weight in best.values())
    assert load_state(tmp_path / "run" / "checkpoints" / "best")["step"] == 4
    assert not (tmp_path / "run" / "checkpoints" / "last").exists()


def test_a_weight_that_is_not_finite_is_not_saved_though_the_loss_is(tmp_path: Path, training: Any) -> None:
    task = training.task()
    loss, calls = task.loss, itertools.count()

    def spoil(rows: Tensor) -> Tensor:
        if next(calls) == 5:
            task.model[3].running_var.fill_(float("inf"))
        return loss(rows)

    task.loss = spoil
    with pytest.raises(UserError, match=r"at step 6 the weight 3\.running_var"):
        training.run(tmp_path / "run", training.settings(log_every=100, validate_every=100, ema_decay=0.0), task)
    assert load_state(tmp_path / "run" / "checkpoints" / "last")["step"] == 3


def test_an_interrupt_saves_no_weights_that_are_not_finite(tmp_path: Path, training: Any) -> None:
    task = training.task(training.cut_at(8, KeyboardInterrupt))
    steps = itertools.count()
    task.loss = lambda rows: task.model(rows).mean() * (float("nan") if next(steps) == 6 else 1.0)
    with pytest.raises(KeyboardInterrupt):
        training.run(tmp_path / "run", training.settings(log_every=50, validate_every=50, checkpoint_every=3), task)
    assert load_state(tmp_path / "run" / "checkpoints" / "last")["step"] == 6


def test_inputs_that_are_not_finite_are_named_before_the_learning_rate(tmp_path: Path, training: Any) -> None:
    task = training.task(lambda number: training.batch(number) * (float("nan") if number == 6 else 1.0))
    checked: list[int] = []

    def check(number: int) -> None:
        checked.append(number)
        raise DamagedStore(f"batch {number} is damaged", "")

    task.require_finite = check
    with pytest.raises(DamagedStore, match="batch 6 is damaged"):
        training.run(tmp_path / "run", training.settings(log_every=50, validate_every=4), task)
    assert checked == [6]


def test_frozen_batch_norm_keeps_its_statistics(tmp_path: Path, training: Any) -> None:
    task = training.task()
    norm = task.model[3]
    before = [norm.running_mean.clone(), norm.running_var.clone()]
    others = [p for module in task.model[:3] for p in module.parameters()]
    task.groups = [loop.ParameterGroup(others), loop.ParameterGroup(list(norm.parameters()), lr_scale=0)]
    training.run(tmp_path / "a", training.settings(steps=4), task)
    assert torch.equal(norm.running_mean, before[0])
    assert torch.equal(norm.running_var, before[1])
    task.groups = [loop.ParameterGroup(list(task.model.parameters()))]
    task.fixed_statistics = True
    training.run(tmp_path / "b", training.settings(steps=4), task)
    assert torch.equal(norm.running_mean, before[0])
    task.fixed_statistics = False
    training.run(tmp_path / "c", training.settings(steps=4), task)
    assert not torch.equal(norm.running_mean, before[0])


def test_weights_to_start_from_stay_the_best_until_a_step_is_better(tmp_path: Path, training: Any) -> None:
    task = training.task()
    task.starts_trained = True
    scores = iter([0.7, 0.5, 0.6, 0.7, 0.2])
    task.validate = lambda model: {"score": next(scores)}
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    state = training.run(tmp_path / "run", training.settings(steps=4, validate_every=1), task)
    assert (state.best_step, state.best_score) == (0, 0.7)
    kept = load_tensors(tmp_path / "run" / "checkpoints" / "best", "model")
    assert all(torch.equal(kept[name], before[name]) for name in before)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (lines[0]["step"], lines[0]["validation_score"]) == (0, 0.7)


def test_the_average_is_an_exponential_one(tmp_path: Path, training: Any) -> None:
    task = training.task()
    seen: list[Tensor] = []
    loss = task.loss

    def keeping(rows: Tensor) -> Tensor:
        seen.append(task.model[0].weight.detach().clone())
        return loss(rows)

    task.loss = keeping
    state = training.run(tmp_path / "run", training.settings(steps=6), task)
    weights = [*seen[1:], task.model[0].weight.detach()]
    expected = weights[0]
    for count, newer in enumerate(weights[1:], start=1):
        kept_share = min(0.5, (1 + count) / (10 + count))
        expected = kept_share * expected + (1 - kept_share) * newer
    torch.testing.assert_close(state.trained[0].weight, expected)
    kept = checkpoint.load_tensors(tmp_path / "run" / "checkpoints" / "last", "average")
    assert set(kept) == set(task.model.state_dict()), "the names are the model's own"


def test_a_trapezoid_rises_stays_and_falls() -> None:
    settings = TrainingSettings(steps=100, schedule="trapezoid", warmup_share=0.1, decay_share=0.2)
    factors = [rate_factor(step, settings) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10:81] == [1.0] * 71
    assert factors[81:] == pytest.approx([left / 20 for left in range(19, 0, -1)])


def test_a_longer_trapezoid_begins_as_a_shorter_one() -> None:
    short = TrainingSettings(steps=100, schedule="trapezoid", warmup_share=0.1)
    long = TrainingSettings(steps=200, schedule="trapezoid", warmup_share=0.05)
    assert [rate_factor(step, short) for step in range(80)] == [rate_factor(step, long) for step in range(80)]


def test_one_cycle_is_pytorchs() -> None:
    settings = TrainingSettings(steps=80, warmup_share=0.075, learning_rate=1.0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, 80, pct_start=0.075, cycle_momentum=False, anneal_strategy="cos"
    )
    for step in range(79):
        assert rate_factor(step, settings) == pytest.approx(reference.get_last_lr()[0], abs=1e-9), step
        optimizer.step()
        reference.step()
