"""Kills ``dptr pretrain`` and ``dptr finetune`` with SIGKILL half-way and lets the same command go on.

Weights, optimiser state and metrics must be those of a run that was left alone, byte for byte, for any number of
workers. It runs on the CPU, where arithmetic repeats exactly, in one thread a process, in a workspace of its own.

Smallest size: --steps 10 --workers 0 --commands pretrain
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from plain_parseq import made_up_words

SMALL = {
    **{f"decoder.{key}": value for key, value in {"dim": 64, "heads": 4, "feed_forward": 128, "dropout": 0.1}.items()},
    **{f"encoder.{key}": value for key, value in {"dim": 64, "heads": 4, "layers": 1}.items()},
}

COMMANDS = ("pretrain", "finetune")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(folder)
        differing = 0
        for verb in arguments.commands:
            command = [verb, *(["--data", str(folder / "crops"), "--from", "none"] if verb == "finetune" else [])]
            expected = files_of(folder, command, 0, arguments.steps, "whole", kill=False)
            for workers in arguments.workers:
                found = files_of(folder, command, workers, arguments.steps, f"cut-{workers}", kill=True)
                same = {file: found.get(file) == digest for file, digest in expected.items()}
                differing += not all(same.values())
                said = ", ".join(f"{file} {'same' if equal else 'DIFFERS'}" for file, equal in same.items())
                print(f"{verb}, killed half-way, {workers} workers: {said}", flush=True)
    sys.exit(bool(differing))


def fill(folder: Path) -> None:
    """A prompt store, an ORP bank and rendered crops, all small."""
    (folder / "words.txt").write_text("\n".join(made_up_words(3000)))
    generator = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(8):
        pixels = generator.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((160, 120)).save(folder / "photos" / f"{number}.png")
    dptr(folder, "embed-text", str(folder / "words.txt"))
    dptr(folder, "build-orp-bank", str(folder / "photos"))
    dptr(folder, "render-words", str(folder / "words.txt"), "-o", str(folder / "crops"), "--count", "300")


def files_of(folder: Path, command: list[str], workers: int, steps: int, name: str, kill: bool) -> dict[str, str]:
    """Train, perhaps with a kill at half of the steps; return the hashes of what is left."""
    run, section = folder / f"{command[0]}-{name}", command[0]
    # Intervals that are no multiples of each other, so that a kill falls between them; all fit into a short run.
    intervals = {"checkpoint": steps * 3 // 20, "log": steps // 20, "validate": steps * 2 // 5}
    settings = SMALL | {f"{section}.{name}_every": max(1, every) for name, every in intervals.items()}
    settings |= {f"{section}.workers": workers, f"{section}.batch_size": 16}
    arguments = [*command, "-o", str(run), "--steps", str(steps)]
    arguments += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    if kill:
        process = subprocess.Popen(full(folder, *arguments), env=environment(), start_new_session=True)
        while last_step(run) < steps // 2:
            if process.poll() is not None:
                sys.exit(f"{command[0]} ended before it could be killed")
            time.sleep(0.002)
        os.killpg(process.pid, 9)
        process.wait()
    dptr(folder, *arguments)
    found = [*sorted((run / "checkpoints" / "last").glob("*.safetensors")), run / "metrics.jsonl"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def last_step(run: Path) -> int:
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, IndexError):
        return 0


def dptr(folder: Path, *arguments: str) -> None:
    subprocess.run(full(folder, *arguments), env=environment(), check=True, stdout=subprocess.DEVNULL)


def full(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "dptr", *arguments, "--workspace", str(folder / "workspace"), "--quiet"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
