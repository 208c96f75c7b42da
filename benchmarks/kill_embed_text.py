"""Kills ``dptr embed-text`` with SIGKILL at random moments and starts it again each time, until the store is finished.

Its files' hashes must be those of a run that was left alone; stores follow each other until there were enough kills.

Smallest size: FEW_WORDS --kills 1 --shard-rows 32
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", type=Path, help="a dictionary, one word a line")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--shard-rows", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "dptr", "embed-text", str(arguments.words), "--quiet"]
        command += ["--workspace", str(folder), "--shard-rows", str(arguments.shard_rows)]
        started = time.monotonic()
        subprocess.run([*command, "-o", str(folder / "whole")], check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        expected, generator, kills, stores = hashes(folder / "whole"), random.Random(arguments.seed), 0, 0
        while kills < arguments.kills:
            out = folder / f"killed-{stores}"
            kills += kill_until_finished([*command, "-o", str(out)], arguments.kills - kills, seconds, generator)
            found, stores = hashes(out), stores + 1
            differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
            print(
                f"store {stores}: {kills} kills so far, {len(found)} files, differing: {differing or 'none'}",
                flush=True,
            )
            if differing:
                sys.exit(1)


def kill_until_finished(command: list[str], most: int, seconds: float, generator: random.Random) -> int:
    """Start a command that takes ``seconds`` again and again, killing it at most so often; return how often it was."""
    for kills in range(most):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            process.wait(generator.uniform(0.0, seconds))
            return kills
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return most


def hashes(store: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a store, hidden ones included."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.iterdir() if path.is_file()}


if __name__ == "__main__":
    main()
