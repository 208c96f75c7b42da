"""The commands that write, at tiny sizes, started so that a fault costs little: for ``faults.py``.

A command is started in a fork of this process, which has loaded the libraries once, or, ``fresh``, in a Python of its
own. A fork does all that the command does itself, and nothing but that, so that a random moment of it is one of its own
work. What it is given and what it writes lie in one folder; what two runs of it must have in common are all files but
those that tell the time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import made_up_words, worked_seconds
from PIL import Image

SMALL = [
    *("decoder.dim=32", "decoder.heads=2", "decoder.feed_forward=32", "decoder.layers=1"),
    *("encoder.dim=32", "encoder.heads=2", "encoder.layers=1", "encoder.patch_height=16"),
    *("fmu.queries=8", "fmu.heads=2", "noise.draw=nearest", "noise.neighbours=4"),
]
STEPS = 12
#: Tell the time, or belong to LMDB.
_VARYING = {"timings.jsonl", "lock.mdb"}


@dataclass(frozen=True)
class Writer:
    """A command that writes: its arguments, given where to; and what must lie there before it starts."""

    arguments: Callable[[Path], list[str]]
    before: Path | None = None

    def prepare(self, out: Path) -> None:
        """Let ``out`` hold what it must, and nothing else."""
        shutil.rmtree(out, ignore_errors=True)
        if self.before is not None:
            shutil.copytree(self.before, out)


class Faulty:
    """A workspace, what fills it, and commands in it that may be killed."""

    def __init__(self, folder: Path, fresh: bool) -> None:
        self.folder = folder
        self.fresh = fresh
        self.prompts, self.orp = folder / "ws" / "prompts", folder / "ws" / "orp"
        self.words, self.photos, self.crops = folder / "words.txt", folder / "photos", folder / "crops"

    def fill(self) -> None:
        """Make words, photos, stores, crops and a run."""
        self.words.write_text("\n".join(made_up_words(400)))
        self.photos.mkdir()
        generator = np.random.default_rng(0)
        for number in range(12):
            pixels = generator.integers(0, 256, (12, 16, 3), np.uint8)
            Image.fromarray(pixels).resize((160, 120)).save(self.photos / f"{number}.png")
        for name in ("embed-text", "build-orp-bank"):
            self.done(self.writers[name].arguments(self.prompts if name == "embed-text" else self.orp))
        shutil.copytree(self.prompts, self.folder / "prompts-alone")
        self.done(["mine-neighbours", "-k", "4"])
        self.done(self.writers["render-words"].arguments(self.crops))

    @property
    def writers(self) -> dict[str, Writer]:
        """All commands that write, by name."""
        steps = ["--steps", str(STEPS), "--device", "cpu"]
        trained = {"pretrain": ["--prompts", str(self.prompts), "--orp", str(self.orp)]}
        trained["finetune"] = [str(self.crops), "--from", "none"]

        def training(verb: str) -> Callable[[Path], list[str]]:
            own = [f"{verb}.{key}_every={every}" for key, every in {"checkpoint": 3, "log": 1, "validate": 4}.items()]
            changes = [part for change in [*SMALL, f"{verb}.batch_size=8", *own] for part in ("--set", change)]
            return lambda out: [verb, *trained[verb], *steps, *changes, "-o", str(out)]

        return {
            "embed-text": Writer(lambda out: ["embed-text", str(self.words), "--shard-rows", "40", "-o", str(out)]),
            "build-orp-bank": Writer(lambda out: ["build-orp-bank", str(self.photos), "-o", str(out)]),
            "mine-neighbours": Writer(
                lambda out: ["mine-neighbours", "-k", "4", "--prompts", str(out)], self.folder / "prompts-alone"
            ),
            "pretrain": Writer(training("pretrain")),
            "finetune": Writer(training("finetune")),
            "render-words": Writer(
                lambda out: ["render-words", str(self.words), "--count", "60", "--seed", "1", "-o", str(out)]
            ),
            "embed-crops": Writer(lambda out: ["embed-crops", str(self.crops), "--copies", "2", "-o", str(out)]),
            "pack-crops": Writer(lambda out: ["pack-crops", str(self.crops), "-o", str(out / "crops.lmdb")]),
            "report": Writer(lambda out: ["report", str(self.run()), "-o", str(out / "report.html")]),
            "export": Writer(
                lambda out: ["export", str(self.run()), "--to", "safetensors", "-o", str(out / "model.safetensors")]
            ),
            "export-onnx": Writer(
                lambda out: ["export", str(self.run()), "--to", "onnx", "-o", str(out / "model.onnx")]
            ),
            "read": Writer(lambda out: ["read", str(self.crops), "-o", str(out / "predictions.parquet")]),
            "sql": Writer(lambda out: ["sql", "from prompts order by id", "-o", str(out / "answer.parquet")]),
        }

    def run(self) -> Path:
        """Return a fine-tuned run, made when it is needed first."""
        run = self.folder / "ws" / "runs" / "finetuned"
        if not run.exists():
            self.done(self.writers["finetune"].arguments(run))
        return run

    def start(self, arguments: list[str], largest_file: int | None = None) -> int:
        """Start a command; return its process id. No file of it becomes larger than so many bytes."""
        workspace = [] if "--workspace" in arguments else ["--workspace", str(self.folder / "ws")]
        full = [*arguments, *workspace, "--quiet"]
        log = os.open(self.log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        try:
            if self.fresh:
                command = [sys.executable, "-m", "dptr", *full]
                return subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_limited(largest_file)).pid
            self._load_libraries()
            return _forked(full, log, _limited(largest_file), self._modules)
        finally:
            os.close(log)

    def _load_libraries(self) -> None:
        """Import what the commands so far imported."""
        for name in self._modules.read_text().split() if self._modules.exists() else ():
            # Some put modules of no file there.
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        self._modules.unlink(missing_ok=True)

    @property
    def _modules(self) -> Path:
        return self.folder / "modules.txt"

    def done(self, arguments: list[str], largest_file: int | None = None) -> int:
        """Run a command; return its exit code.

        Raises:
            SystemExit: it failed, and no limit was the reason.
        """
        code = wait_for(self.start(arguments, largest_file))
        assert code is not None
        if code and largest_file is None:
            sys.exit(f"{' '.join(arguments)}: exit code {code}\n{self.said}")
        return code

    @property
    def log(self) -> Path:
        """Where the newest command's output goes."""
        return self.folder / "log.txt"

    @property
    def said(self) -> str:
        """What the newest command said."""
        return self.log.read_text(errors="replace").strip()


def files_of(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below ``out``, hidden ones included, but for those that tell the time."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in _VARYING]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Return the names of files that are not the same."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def wait_for(process: int, seconds: float | None = None) -> int | None:
    """Return a process's exit code (negative: the signal that ended it); None when it goes on after ``seconds``."""
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(process, 0 if until is None else os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if until is not None and time.monotonic() > until:
            return None
        time.sleep(0.001)


def cpu_seconds() -> float:
    """Return the CPU time of all processes that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def wait_for_work(process: int, seconds: float) -> int | None:
    """Return a process's exit code; None when it has used more than ``seconds`` of CPU time and goes on (Linux)."""
    while (code := wait_for(process, 0)) is None and worked_seconds(process) < seconds:
        time.sleep(0.001)
    return code


def stop(process: int, number: signal.Signals) -> int:
    """Send a signal to a process and wait for its end; return its exit code."""
    os.kill(process, number)
    code = wait_for(process)
    assert code is not None
    return code


def _limited(largest_file: int | None) -> Callable[[], None]:
    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))

    return limit


def _forked(arguments: list[str], log: int, prepare: Callable[[], None], modules: Path) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        prepare()
        os.dup2(log, 1)
        os.dup2(log, 2)
        from dptr.cli import run_command

        before = {*sys.modules}
        code = run_command(arguments)
        if new := {*sys.modules} - before:
            modules.write_text("\n".join(new))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
