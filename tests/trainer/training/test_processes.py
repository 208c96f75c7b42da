"""Trainings in several processes, started by torchrun: what they come to, where they go on, how they end."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from dptr.cache.errors import UserError
from dptr.cli import run_command
from dptr.trainer.recipe import TrainingSettings
from dptr.trainer.training import processes
from dptr.trainer.training.checkpoint import load_state, load_tensors

#: They compare with one run that is made once.
pytestmark = pytest.mark.xdist_group("processes")

DECODER = ["decoder.dim=32", "decoder.heads=2", "decoder.feed_forward=32", "decoder.layers=1", "decoder.dropout=0.1"]
STEPS = 40
WORDS = [a + b + c for a in "bcdfg" for b in "aeiou" for c in "lmnrs"][:60]
#: Number of processes, arguments of dptr -> the command as it runs, or what it printed.
Start = Callable[[int, Sequence[str]], "subprocess.Popen[str]"]
Train = Callable[[int, Sequence[str]], str]


@pytest.fixture(scope="module")
def start(forked_python: str) -> Callable[[int, Sequence[str]], subprocess.Popen[str]]:
    """Start a command, with torchrun where it takes several processes."""

    def started(count: int, arguments: Sequence[str]) -> subprocess.Popen[str]:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m"]
        command = [forked_python, "-m", *(torchrun if count > 1 else []), "dptr", *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return started


@pytest.fixture(scope="module")
def train(start: Start) -> Train:
    """Run a command to its end; return what it printed."""

    def trained(count: int, arguments: Sequence[str]) -> str:
        with start(count, arguments) as running:
            printed, said = running.communicate(timeout=300)
        assert running.returncode == 0, said
        return printed

    return trained


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def options(section: str, workspace: Path, run: Path, steps: int, *changes: str) -> list[str]:
    often = [f"{section}.{key}" for key in ("log_every=1", "validate_every=20", "checkpoint_every=8")]
    made = [f"--set={change}" for change in (*DECODER, *often, f"{section}.accumulate=4", *changes)]
    where = ["--workspace", str(workspace), "-o", str(run), "--device", "cpu", "--quiet", "--json"]
    return [f"--set={section}.steps={steps}", f"--set={section}.schedule=constant", *made, *where]


@pytest.fixture(scope="module")
def pretraining(train: Train, stores: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Number of processes -> a run of ``STEPS``, made once; what it printed is in ``printed``."""
    folder = tmp_path_factory.mktemp("runs")

    def run(count: int) -> Path:
        out = folder / str(count)
        if not out.exists():
            changes = ("pretrain.batch_size=4", "pretrain.ema_decay=0.9", "pretrain.workers=1")
            printed = train(count, ["pretrain", *options("pretrain", stores, out, STEPS, *changes)])
            (out / "printed").write_text(printed)
        return out

    return run


def close(one: Path, other: Path) -> bool:
    return losses(one) == pytest.approx(losses(other), abs=1e-5)


@pytest.mark.slow
def test_losses_do_not_depend_on_the_number_of_processes(pretraining: Callable[[int], Path]) -> None:
    alone, together = pretraining(1), pretraining(2)
    assert len(losses(together)) == STEPS
    assert close(alone, together)
    printed = (together / "printed").read_text().splitlines()
    assert len(printed) == 1, "one process speaks for all"
    assert json.loads(printed[0])["steps"] == STEPS
    for name in ("model", "average"):
        theirs = load_tensors(together / "checkpoints" / "last", name)
        for key, weights in load_tensors(alone / "checkpoints" / "last", name).items():
            # A bias of keys shifts all scores of a query alike, so its gradient is rounding alone, which Adam enlarges.
            first = len(weights) // 2 if key.endswith(".key_value.bias") else 0
            torch.testing.assert_close(theirs[key][first:], weights[first:], atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("signals_are_heard")
@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 2)])
def test_a_run_goes_on_in_another_number_of_processes(
    stores: Path,
    pretraining: Callable[[int], Path],
    start: Start,
    train: Train,
    tmp_path: Path,
    before: int,
    after: int,
) -> None:
    out, changes = tmp_path / "run", ("pretrain.batch_size=4", "pretrain.ema_decay=0.9", "pretrain.workers=1")
    command = ["pretrain", *options("pretrain", stores, out, STEPS, *changes)]
    with start(before, command) as running:
        until = time.monotonic() + 120
        while not (out / "checkpoints" / "last").exists() and running.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=120)
    assert running.returncode != 0
    assert "interrupted; rerun the command to resume" in said
    stopped = load_state(out / "checkpoints" / "last")["step"]
    assert 8 <= stopped < STEPS
    train(after, command)
    assert close(pretraining(1), out)


@pytest.mark.slow
def test_losses_of_finetuning_with_batch_norm_are_the_same_in_two_processes(
    draw_crops: Callable[[Path, Sequence[str]], Path], train: Train, tmp_path: Path
) -> None:
    crops = draw_crops(tmp_path / "crops", WORDS)
    changes = [
        *("encoder.kind=convolution", "encoder.dim=32", "encoder.channels=8", "encoder.heads=2", "encoder.layers=1"),
        *("fmu.kind=none", 'encoder.image_widths="96"', "finetune.batch_size=3", "finetune.ctc_weight=1.0"),
    ]
    changes += ["finetune.learning_rate=1e-4"]
    for count in (1, 2):
        out = tmp_path / str(count)
        command = ["finetune", str(crops), "--from", "none", "--charset", "36"]
        train(count, [*command, *options("finetune", tmp_path / "ws", out, 6, *changes)])
    # CTC makes losses of 30 and more of words that are not read yet.
    assert losses(tmp_path / "2") == pytest.approx(losses(tmp_path / "1"), rel=1e-5)


def test_more_processes_than_micro_batches_are_rejected_with_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError) as rejected:
        processes.join(TrainingSettings(batch_size=64, accumulate=2), "pretrain")
    assert "--set pretrain.accumulate=4 --set pretrain.batch_size=32" in str(rejected.value)


def test_what_works_in_one_process_rejects_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert run_command(["embed-text", "words.txt", "-o", str(tmp_path / "store")]) == 2
    assert "2 processes were started, and dptr embed-text works in one" in capsys.readouterr().err


FAILING_FIRST = """
import sys
from pathlib import Path
import torch.distributed as dist
from dptr.cache.errors import UserError
from dptr.trainer.training import processes

dist.init_process_group("gloo")
try:
    with processes.first_before_others():
        if processes.is_first():
            dist.destroy_process_group()  # as a failing command does at its end
            sys.exit(0)
except UserError as error:
    assert "another process of this training has ended" in str(error)
    (Path(sys.argv[1]) / "told").touch()
    dist.destroy_process_group()
"""


def test_where_the_first_process_ends_the_others_do_too(tmp_path: Path, forked_python: str) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING_FIRST)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([forked_python, *torchrun, str(script), str(tmp_path)], timeout=240)
    assert done.returncode == 0
    assert (tmp_path / "told").exists()
