"""Kills, fills, flips and tears, for every command that writes: what is promised in docs/reliability.md, tried.

kill    SIGKILL at random moments of the work (by CPU time), again and again until the command is finished
term    the same with SIGTERM, the signal of batch systems
fill    a disk of 50 MB that is full at a random moment (tmpfs; where none may be mounted, small files), then room
race    four at once on one folder; the one that works is killed, and another takes over
flip    one flipped bit in each file of a prompt store, a bank, a run and an exported model
tear    the same files, each cut short

After every fault no file that a manifest lists is torn, and in the end all files equal an undisturbed run's.

Smallest size: kill --times 1 --commands render-words
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from faulty_commands import STEPS, Faulty, Writer, cpu_seconds, differing, files_of, stop, wait_for, wait_for_work

from dptr.cache.errors import DptrError, run_script
from dptr.cache.progress import set_quiet
from dptr.cache.stores.verify import is_run, is_store, verify

FAULTS = ("kill", "term", "fill", "race", "flip", "tear")
COMMANDS = (
    *("embed-text", "build-orp-bank", "mine-neighbours", "pretrain", "finetune", "render-words"),
    *("embed-crops", "pack-crops", "report", "export", "export-onnx", "read", "sql"),
)
KINDS = ("prompts", "orp", "run", "model")
#: Begun but not described yet: a store before its first shard, a run before its description.
_BEGUN = "is missing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="+", choices=FAULTS)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="whose files are flipped and torn")
    parser.add_argument("--times", type=int, default=100, help="kills of each command, flips of each file")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin nothing new after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="every command in a Python of its own, not in a fork")
    arguments = parser.parse_args()
    set_quiet(True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # what is mounted is unmounted
    ends = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(prefix="dptr-faults-") as name:
        faulty = Faulty(Path(name), arguments.fresh)
        faulty.fill()
        trial = Trial(faulty, random.Random(arguments.seed), arguments.times, ends)
        for fault in arguments.faults:
            if fault in ("flip", "tear"):
                for kind in arguments.kinds:
                    trial.damage(fault, kind)
            else:
                for command in arguments.commands:
                    trial.disturb(fault, command)
    print("; ".join(trial.wrong) or "nothing was lost, nothing was wrong", flush=True)
    sys.exit(bool(trial.wrong))


class Trial:
    """Faults tried one after another, and what they broke."""

    def __init__(self, faulty: Faulty, generator: random.Random, times: int, ends: float) -> None:
        self.faulty, self.random, self.times, self.ends = faulty, generator, times, ends
        self.wrong: list[str] = []

    def disturb(self, fault: str, command: str) -> None:
        """Disturb a command with one kind of fault, so many times."""
        writer, whole = self.faulty.writers[command], self.faulty.folder / "whole"
        writer.prepare(whole)
        used = cpu_seconds()
        self.faulty.done(writer.arguments(whole))
        work, expected = cpu_seconds() - used, files_of(whole)
        ways: dict[str, Callable[[Writer, dict[str, str]], int]] = {
            "kill": lambda *given: self._stopped(signal.SIGKILL, work, *given),
            "term": lambda *given: self._stopped(signal.SIGTERM, work, *given),
            "fill": self._filled,
            "race": self._raced,
        }
        faults, runs, before = 0, 0, len(self.wrong)
        while faults < self.times and time.monotonic() < self.ends:
            faults, runs = faults + ways[fault](writer, expected), runs + 1
        found = self.wrong[before:] or "all files equal"
        print(f"{fault} {command}: {faults} times in {runs} runs, {found}", flush=True)
        shutil.rmtree(whole)

    def _stopped(self, number: signal.Signals, work: float, writer: Writer, expected: dict[str, str]) -> int:
        """Stop a command at random moments until it is finished once; return how often it was stopped.

        Moments are drawn from the ``work`` in seconds of CPU time that it takes undisturbed.
        """
        out, stops = self.faulty.folder / "out", 0
        writer.prepare(out)
        while True:
            process = self.faulty.start(writer.arguments(out))
            code = wait_for_work(process, self.random.random() * work)
            if code is None and stops < self.times and time.monotonic() < self.ends:
                code, stops = stop(process, number), stops + 1
                self._require_untorn(out)
                # It may have ended by itself just now, and then there is nothing left to do.
                expected_codes = (-signal.SIGKILL, 0) if number == signal.SIGKILL else (130, -number, 0)
                self._require(code in expected_codes, f"exit code {code} after {number.name}: {self.faulty.said}")
                continue
            if code is None:
                code = wait_for(process)
            # A signal that came after the last byte left a finished output, which some commands reject to write again.
            finished = code == 0 or (stops > 0 and self._is_there)
            self._require(finished, f"exit code {code} in the end: {self.faulty.said}")
            break
        self._require_equal(out, expected)
        return stops

    def _filled(self, writer: Writer, expected: dict[str, str]) -> int:
        """Let the disk, one of 50 MB, be full after a random part of the work, then make room."""
        disk, whole = self.faulty.folder / "full", self.faulty.folder / "whole"
        disk.mkdir(exist_ok=True)
        mounted = _mount(disk, 2 * sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()))
        out, ballast = disk / "out", disk / "ballast"
        try:
            writer.prepare(out)
            size = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
            held = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
            room = self.random.randint(1, max(2, size - held))
            if mounted:
                ballast.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))
            code = self.faulty.done(writer.arguments(out), largest_file=1 << 40 if mounted else room // 8)
            lines = self.faulty.said.splitlines()
            told = code == 2 and len(lines) == 1 and ("space" in lines[0] or "too large" in lines[0])
            self._require(
                told or code == 0, f"exit code {code} with room for {room} of {size} bytes: {self.faulty.said}"
            )
            self._require_untorn(out)
            ballast.unlink(missing_ok=True)
            rejected = code != 0
            code = self.faulty.done(writer.arguments(out), largest_file=1 << 40)
            self._require(code == 0 or self._is_there, f"exit code {code} after room was made: {self.faulty.said}")
            self._require_equal(out, expected)
        finally:
            if mounted:
                subprocess.run(["umount", str(disk)], check=True)
            shutil.rmtree(disk, ignore_errors=True)
        return int(rejected)

    @property
    def _is_there(self) -> bool:
        """Whether the output was finished already, which some commands reject to write again."""
        return any(told in self.faulty.said for told in ("is there already", "exists. Name another", "is a file of"))

    def _raced(self, writer: Writer, expected: dict[str, str]) -> int:
        """Start four at once; when three have ended, kill the one that works, and let another take over."""
        out = self.faulty.folder / "out"
        writer.prepare(out)
        running = [self.faulty.start(writer.arguments(out)) for _ in range(4)]
        codes: list[int] = []
        while len(running) > 1:
            for process in list(running):
                if len(running) > 1 and (code := wait_for(process, 0)) is not None:
                    running.remove(process)
                    codes.append(code)
        codes.append(stop(running[0], signal.SIGKILL))
        # On a busy machine one may begin when another has finished, and find nothing left to do.
        self._require(set(codes) <= {0, 2, -signal.SIGKILL}, f"exit codes {codes}: {self.faulty.said}")
        self._require_untorn(out)
        code = self.faulty.done(writer.arguments(out), largest_file=1 << 40)
        self._require(code == 0 or self._is_there, f"exit code {code}: {self.faulty.said}")
        self._require_equal(out, expected)
        return 1

    def damage(self, fault: str, kind: str) -> None:
        """Damage every file of a store, a run or a model; see that it is found, and repaired where that is possible."""
        folder, use = _victim(self.faulty, kind)
        tried = found = rejected = healed = repaired = 0
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".jsonl"):
            whole = path.read_bytes()
            for _ in range(self.times if time.monotonic() < self.ends else 0):
                path.write_bytes(self._flipped(whole) if fault == "flip" else self._torn(whole))
                tried += 1
                is_found = _is_found(folder if kind != "model" else path, path)
                found += is_found
                self._require(is_found, f"{fault} in {path.name} was not found by verify")
                broken = path.read_bytes()
                code = self.faulty.done(use, largest_file=1 << 40)
                rejected += code == 3
                same = path.is_file() and path.read_bytes() == whole
                healed += code == 0 and same
                path.write_bytes(broken)
                if kind in ("prompts", "orp"):
                    self.faulty.done(["verify", "--repair", str(folder)], largest_file=1 << 40)
                    repaired += path.read_bytes() == whole
                path.write_bytes(whole)
        told = f"{found} found by verify, {rejected} rejected with exit 3 and {healed} computed anew by the command"
        print(f"{fault} {kind}: {tried} tried, {told}, {repaired} repaired", flush=True)

    def _flipped(self, whole: bytes) -> bytes:
        data = bytearray(whole)
        data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        return bytes(data)

    def _torn(self, whole: bytes) -> bytes:
        return whole[: self.random.randrange(len(whole))]

    def _require_untorn(self, out: Path) -> None:
        if is_store(out) or is_run(out):
            torn = [f"{found.path} {found.problem}" for found in verify(out) if found.problem != _BEGUN]
            self._require(not torn, f"torn: {torn}")

    def _require_equal(self, out: Path, expected: dict[str, str]) -> None:
        wrong = differing(files_of(out), expected)
        self._require(not wrong, f"not as undisturbed: {wrong}")

    def _require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)


def _victim(faulty: Faulty, kind: str) -> tuple[Path, list[str]]:
    """Return the folder whose files are damaged, and a command that uses them."""
    if kind in ("prompts", "orp"):
        out = faulty.folder / "used"
        pretrain = [*faulty.writers["pretrain"].arguments(out)]
        pretrain[pretrain.index(str(STEPS))] = "2"
        return faulty.prompts if kind == "prompts" else faulty.orp, pretrain
    run = faulty.run()
    if kind == "run":
        return run, ["read", str(run), str(next(faulty.crops.rglob("*.jpg"), faulty.crops))]
    model = faulty.folder / "models" / "model.safetensors"
    model.parent.mkdir(exist_ok=True)
    faulty.done(["export", str(run), "--to", "safetensors", "-o", str(model)])
    return model.parent, ["read", str(model), str(faulty.crops)]


def _is_found(checked: Path, damaged: Path) -> bool:
    try:
        return damaged in [found.path for found in verify(checked)]
    except DptrError:
        return True


def _mount(folder: Path, needed: int) -> bool:
    """Let ``folder`` be a disk of 50 MB, or of ``needed`` bytes if they are more; False where that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={max(needed, 50 << 20)}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


if __name__ == "__main__":
    run_script(main)
