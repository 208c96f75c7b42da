"""The loop and its checkpoints: a run that was cut goes on to the same bits, and what is saved is whole."""

from __future__ import annotations

import functools
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dptr.cache.errors import DamagedStore, UserError
from dptr.trainer.training import checkpoint, loop, step_log
from dptr.trainer.training.checkpoint import find_checkpoint, load_state, save_checkpoint
from dptr.trainer.training.loader import load_batches
from dptr.trainer.training.schedule import rate_factor
from dptr.trainer.training.settings import TrainingSettings

SETTINGS = TrainingSettings(
    steps=12, batch_size=4, learning_rate=0.01, log_every=2, validate_every=4, checkpoint_every=3, ema_decay=0.5
)


def changed(settings: TrainingSettings, **values: Any) -> TrainingSettings:
    return settings.model_copy(update=values)


def made_batch(number: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(number))


def made_task(batch: Callable[[int], Tensor] = made_batch) -> loop.Task[Tensor]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1), nn.BatchNorm1d(1))
    return loop.Task(
        model=model,
        batch=batch,
        loss=lambda rows: model(rows).square().mean(),
        validate=lambda network: {"score": -float(network(made_batch(999)).square().mean().detach())},
        rows=len,
        groups=[loop.ParameterGroup(list(model.parameters()))],
    )


def train(
    folder: Path, settings: TrainingSettings = SETTINGS, task: loop.Task[Tensor] | None = None
) -> loop.TrainState:
    folder.mkdir(exist_ok=True)
    return loop.run(folder, task or made_task(), settings, torch.device("cpu"))


def saved(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    weights = checkpoint.load_tensors(folder / "checkpoints" / "last", "model")
    return weights, (folder / "metrics.jsonl").read_text().splitlines()


def cut_at(number: int, error: type[BaseException]) -> Callable[[int], Tensor]:
    def batch(asked: int) -> Tensor:
        if asked == number:
            raise error
        return made_batch(asked)

    return batch


@pytest.mark.parametrize("cut", range(1, 12))
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_was_cut_goes_on_to_the_same_bits(tmp_path: Path, cut: int, error: type[BaseException]) -> None:
    train(tmp_path / "whole")
    with pytest.raises(error):
        train(tmp_path / "cut", task=made_task(cut_at(cut, error)))
    train(tmp_path / "cut")
    weights, lines = saved(tmp_path / "whole")
    resumed, resumed_lines = saved(tmp_path / "cut")
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert resumed_lines == lines


def test_workers_change_nothing(tmp_path: Path) -> None:
    train(tmp_path / "none")
    train(tmp_path / "two", changed(SETTINGS, workers=2))
    one, other = saved(tmp_path / "none"), saved(tmp_path / "two")
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert one[1] == other[1]


def test_an_interrupted_run_keeps_its_last_whole_step(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", task=made_task(cut_at(7, KeyboardInterrupt)))
    # Batch 7 is waited for inside step 8, of which nothing has been applied.
    assert load_state(tmp_path / "run" / "checkpoints" / "last")["step"] == 7


def interrupted_once(function: Callable[[nn.Module], dict[str, float]]) -> Callable[[nn.Module], dict[str, float]]:
    calls = itertools.count()

    def interrupted(network: nn.Module) -> dict[str, float]:
        if next(calls) == 0:
            raise KeyboardInterrupt
        return function(network)

    return interrupted


def test_an_interrupt_during_validation_loses_no_log_line(tmp_path: Path) -> None:
    train(tmp_path / "whole")
    task = made_task()
    task.validate = interrupted_once(task.validate)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", task=task)
    assert load_state(tmp_path / "cut" / "checkpoints" / "last")["step"] == 4, "no step is lost"
    assert not (tmp_path / "cut" / "checkpoints" / "best").exists(), "what was validated is step 4, and it was cut off"
    train(tmp_path / "cut")
    assert saved(tmp_path / "cut")[1] == saved(tmp_path / "whole")[1]
    one, other = (saved(tmp_path / name)[0] for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    bests = [load_state(tmp_path / name / "checkpoints" / "best")["best_step"] for name in ("whole", "cut")]
    assert bests[0] == bests[1]


def test_the_best_checkpoint_is_there_once_the_last_one_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = loop.save_checkpoint

    def dies_at_the_second(folder: Path, *rest: Any) -> None:
        if (folder.parent / "best").exists() or (folder.parent / "last").exists():
            raise SystemExit
        save(folder, *rest)

    monkeypatch.setattr(loop, "save_checkpoint", dies_at_the_second)
    with pytest.raises(SystemExit):
        train(tmp_path / "run", changed(SETTINGS, checkpoint_every=4))
    monkeypatch.undo()
    train(tmp_path / "run", changed(SETTINGS, checkpoint_every=4))
    state = load_state(tmp_path / "run" / "checkpoints" / "last")
    assert load_state(tmp_path / "run" / "checkpoints" / "best")["step"] == state["best_step"]


def test_a_full_disk_during_training_keeps_the_last_checkpoint_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole")
    save, calls = checkpoint.save_file, itertools.count()

    def fills_up(*arguments: Any) -> None:
        if next(calls) == 10:
            raise OSError(28, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save_file", fills_up)
    with pytest.raises(UserError, match="No space left"):
        train(tmp_path / "full")
    kept = load_state(tmp_path / "full" / "checkpoints" / "last")["step"]
    assert 0 < kept < 12
    train(tmp_path / "full")
    assert saved(tmp_path / "full")[1] == saved(tmp_path / "whole")[1]
    one, other = (saved(tmp_path / name)[0] for name in ("full", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"could not write .*metrics\.jsonl"):
        train(tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_what_goes_wrong_with_the_data_is_one_line_from_a_worker_too(tmp_path: Path, workers: int) -> None:
    def batch(number: int) -> Tensor:
        if number == 3:
            raise DamagedStore("part-00007.arrow is cut short", "Repair it")
        return made_batch(number)

    with pytest.raises(DamagedStore) as caught:
        train(tmp_path / "run", changed(SETTINGS, workers=workers), made_task(batch))
    assert str(caught.value) == "part-00007.arrow is cut short. Repair it"


def test_a_finished_run_takes_no_further_step(tmp_path: Path) -> None:
    train(tmp_path / "run")
    before = (tmp_path / "run" / "checkpoints" / "last" / "state.json").stat().st_mtime_ns
    state = train(tmp_path / "run", task=made_task(cut_at(0, AssertionError)))
    assert state.step == 12
    assert (tmp_path / "run" / "checkpoints" / "last" / "state.json").stat().st_mtime_ns == before


def test_accumulation_equals_one_large_batch(tmp_path: Path) -> None:
    def task(batch: Callable[[int], Tensor]) -> loop.Task[Tensor]:
        made = made_task(batch)
        made.model[1].p = 0.0
        made.model[3] = nn.Identity()  # its statistics are of a batch, not of a step
        return made

    def pairs(number: int) -> Tensor:
        return torch.cat([made_batch(2 * number), made_batch(2 * number + 1)])

    settings = changed(SETTINGS, steps=4)
    train(tmp_path / "large", settings, task(pairs))
    train(tmp_path / "small", changed(settings, accumulate=2), task(made_batch))
    for one, other in zip(*(saved(tmp_path / name)[0].values() for name in ("large", "small")), strict=True):
        torch.testing.assert_close(one, other)


def test_patience_ends_a_run_that_no_longer_improves(tmp_path: Path) -> None:
    task = made_task()
    scores = itertools.chain([1.0, 2.0], itertools.repeat(0.0))
    task.validate = lambda network: {"score": next(scores)}
    state = train(tmp_path / "run", changed(SETTINGS, steps=100, validate_every=2, patience=6), task)
    assert (state.best_step, state.step) == (4, 10)
    assert load_state(tmp_path / "run" / "checkpoints" / "best")["step"] == 4
    again = train(tmp_path / "run", changed(SETTINGS, steps=100, validate_every=2, patience=6))
    assert again.step == 10, "the same command takes no further step"


def test_frozen_parameters_stay_until_their_step(tmp_path: Path) -> None:
    task = made_task()
    first, others = task.model[0], task.model[1:]
    start = first.weight.detach().clone()
    task.groups = [
        loop.ParameterGroup(list(first.parameters()), 1.0, 4),
        loop.ParameterGroup(list(others.parameters())),
    ]
    train(tmp_path / "a", changed(SETTINGS, steps=4), task)
    assert torch.equal(first.weight, start)
    train(tmp_path / "b", changed(SETTINGS, steps=5), task)
    assert not torch.equal(first.weight, start)


def test_a_parameter_that_no_group_trains_is_an_error(tmp_path: Path) -> None:
    task = made_task()
    task.groups = [loop.ParameterGroup(list(task.model.parameters())[1:])]
    with pytest.raises(ValueError, match=r"never trained: 0\.weight"):
        train(tmp_path, task=task)


def test_a_loss_that_is_not_finite_ends_the_run_with_advice(tmp_path: Path) -> None:
    task = made_task()
    task.loss = lambda rows: task.model(rows).mean() * float("nan")
    with pytest.raises(UserError, match="learning rate"):
        train(tmp_path / "run", task=task)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"files": 3}'])
def test_a_damaged_description_is_damage(tmp_path: Path, content: str) -> None:
    save_checkpoint(tmp_path / "last", {"model": {"w": torch.ones(3)}}, {"step": 1})
    (tmp_path / "last" / "state.json").write_text(content)
    with pytest.raises(DamagedStore, match=r"state\.json"):
        load_state(tmp_path / "last")


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    task = made_task()
    steps = itertools.count()
    task.loss = lambda rows: task.model(rows).mean() * (float("nan") if next(steps) >= 5 else 1.0)
    with pytest.raises(UserError, match="at step 6"):
        train(tmp_path / "run", changed(SETTINGS, log_every=100, validate_every=100), task)
    assert load_state(tmp_path / "run" / "checkpoints" / "last")["step"] == 3


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "last"
    save_checkpoint(folder, {"model": {"w": torch.ones(3)}}, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(folder, {"model": {"w": torch.zeros(3)}}, {"step": 2})
    found = find_checkpoint(folder)
    assert found == folder
    assert load_state(folder)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "last"
    save_checkpoint(folder, {"model": {"w": torch.ones(3)}}, {"step": 1})
    renames: list[Path] = []
    rename = checkpoint.os.rename

    def dies_at_second(source: Path, target: Path) -> None:
        renames.append(target)
        if len(renames) == 2:
            raise SystemExit
        rename(source, target)

    monkeypatch.setattr(checkpoint.os, "rename", dies_at_second)
    with pytest.raises(SystemExit):
        save_checkpoint(folder, {"model": {"w": torch.zeros(3)}}, {"step": 2})
    found = find_checkpoint(folder)
    assert found is not None
    assert load_state(found)["step"] in (1, 2)


def test_a_changed_checkpoint_file_is_damage(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last", {"model": {"w": torch.ones(3)}}, {"step": 1})
    path = tmp_path / "last" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedStore, match=r"model\.safetensors"):
        load_state(tmp_path / "last")


def test_one_cycle_is_pytorchs(tmp_path: Path) -> None:
    settings = changed(SETTINGS, steps=80, warmup_share=0.075, learning_rate=1.0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, 80, pct_start=0.075, cycle_momentum=False, anneal_strategy="cos"
    )
    for step in range(79):
        assert rate_factor(step, settings) == pytest.approx(reference.get_last_lr()[0], abs=1e-9), step
        optimizer.step()
        reference.step()


def test_half_a_line_at_the_end_of_the_log_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 2}) + "\n" + json.dumps({"step": 4}) + '\n{"ste')
    step_log.keep_up_to(path, 3)
    assert path.read_text() == '{"step": 2}\n'


def test_an_interrupt_while_the_best_checkpoint_is_written_still_leaves_a_best_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = loop.save_checkpoint, itertools.count()

    def interrupted(folder: Path, *rest: Any) -> None:
        if folder.name == "best" and next(calls) == 0:
            raise KeyboardInterrupt
        save(folder, *rest)

    monkeypatch.setattr(loop, "save_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut")
    task = made_task()
    task.validate = lambda network: {"score": -1e9}
    train(tmp_path / "cut", changed(SETTINGS, steps=12), task)
    assert load_state(tmp_path / "cut" / "checkpoints" / "best")["step"] == 4


def test_damaged_lines_of_a_log_take_no_others_with_them(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 2}\n{"st\xff\n[]\n{"step": 4}\n{"step": 6}\n{"ste')
    step_log.keep_up_to(path, 5)
    assert path.read_text() == '{"step": 2}\n{"step": 4}\n'


def test_a_last_checkpoint_without_its_state_gives_way_to_the_best(tmp_path: Path, capsys: Any) -> None:
    train(tmp_path / "whole")
    with pytest.raises(RuntimeError):
        train(tmp_path / "cut", task=made_task(cut_at(10, RuntimeError)))
    (tmp_path / "cut" / "checkpoints" / "last" / "state.json").unlink()
    best = load_state(tmp_path / "cut" / "checkpoints" / "best")["step"]
    train(tmp_path / "cut")
    assert "state.json is missing" in (said := capsys.readouterr().err)
    assert f"at step {best}" in said
    assert saved(tmp_path / "cut")[1] == saved(tmp_path / "whole")[1]


def test_a_run_without_any_checkpoint_never_silently_starts_anew(tmp_path: Path) -> None:
    train(tmp_path / "run")
    for name in ("last", "best"):
        (tmp_path / "run" / "checkpoints" / name / "state.json").unlink()
    with pytest.raises(DamagedStore, match=r"last/state\.json is missing"):
        train(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(DamagedStore, match=r"timings\.jsonl tells of a checkpoint at step 12"):
        train(tmp_path / "run")


def test_a_run_killed_before_its_first_checkpoint_starts_anew_however_often_it_saves_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "whole")
    with pytest.raises(RuntimeError):
        train(
            tmp_path / "cut",
            changed(SETTINGS, validate_every=12, checkpoint_every=12),
            made_task(cut_at(8, RuntimeError)),
        )
    assert step_log.last_step(tmp_path / "cut" / "metrics.jsonl") == 8
    train(tmp_path / "cut")
    assert "reached step 8 and was cut off before its first checkpoint" in capsys.readouterr().err
    assert saved(tmp_path / "cut")[1] == saved(tmp_path / "whole")[1]


def test_frozen_batch_norm_keeps_its_statistics(tmp_path: Path) -> None:
    task = made_task()
    norm = task.model[3]
    before = [norm.running_mean.clone(), norm.running_var.clone()]
    others = [p for module in task.model[:3] for p in module.parameters()]
    task.groups = [loop.ParameterGroup(others), loop.ParameterGroup(list(norm.parameters()), frozen_until=4)]
    train(tmp_path / "a", changed(SETTINGS, steps=4), task)
    assert torch.equal(norm.running_mean, before[0])
    assert torch.equal(norm.running_var, before[1])
    train(tmp_path / "b", changed(SETTINGS, steps=5), task)
    assert not torch.equal(norm.running_mean, before[0])


def test_the_average_is_an_exponential_one(tmp_path: Path) -> None:
    task = made_task()
    seen: list[Tensor] = []
    loss = task.loss

    def keeping(rows: Tensor) -> Tensor:
        seen.append(task.model[0].weight.detach().clone())
        return loss(rows)

    task.loss = keeping
    state = train(tmp_path / "run", changed(SETTINGS, steps=6), task)
    weights = [*seen[1:], task.model[0].weight.detach()]
    expected = weights[0]
    for count, newer in enumerate(weights[1:], start=1):
        kept_share = min(0.5, (1 + count) / (10 + count))
        expected = kept_share * expected + (1 - kept_share) * newer
    torch.testing.assert_close(state.trained[0].weight, expected)
    kept = checkpoint.load_tensors(tmp_path / "run" / "checkpoints" / "last", "average")
    assert set(kept) == set(task.model.state_dict()), "the names are the model's own"


def test_workers_may_be_spawned(tmp_path: Path) -> None:
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method("spawn", force=True)
    try:
        batches = list(load_batches(functools.partial(torch.full, (2,)), 3, 6, workers=1))
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    assert [batch.tolist() for batch in batches] == [[3, 3], [4, 4], [5, 5]]
