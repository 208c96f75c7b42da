"""Fuzzes every reader of foreign input: valid files are made, broken at random (``breaking.py``), and read.

A reader may refuse what it is given, in one line; it may not raise anything else, take longer than 10 s of CPU time, or
let this process grow above 2 GB. Each reader works in a process of its own, so that even a crash is found; the broken
file stays in --keep. What is sealed with a hash is sealed again once it is broken, or nothing behind the seal would be
tried. With --totals what was tried is added to a file, and the next start goes on with inputs that were not tried yet.
Several may run side by side, of one reader each, with totals of their own.

Smallest size: --readers corpus images recipe --inputs 10
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from breaking import mutated
from fuzzed_readers import READERS as READERS_OF_INPUTS
from fuzzed_readers import Fuzzed
from fuzzed_stores import READERS as READERS_OF_STORES
from judged import at_least
from process_time import worked_seconds

from dptr.cache.errors import DptrError, disk_error, run_script
from dptr.cache.progress import set_quiet
from dptr.cache.stores.files import write_json

LONGEST_SECONDS = 10
#: In a library that hears no signal; and without any CPU time, as one that waits for what never comes.
LONGEST_UNHEARD = 60
LONGEST_ASLEEP = 300
LARGEST_BYTES = 2 << 30
#: More is refused, so that a reader that asks for it harms nobody else on the machine.
_MOST_BYTES = 3 << 30
_FILES_A_PROCESS = 500
#: How a process ends that could not read a valid file.
_NOT_READ = 3
READERS = READERS_OF_INPUTS | READERS_OF_STORES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--minutes", type=float, default=60.0, help="of each reader")
    parser.add_argument("--inputs", type=at_least(1), help="of each reader, in place of minutes")
    parser.add_argument("--turn", type=float, help="minutes until the next reader has its turn; all at once without")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--keep", type=Path, help="folder for inputs that were not refused as they should be")
    parser.add_argument("--totals", type=Path, help="JSON file to which everything tried is added")
    arguments = parser.parse_args()
    set_quiet(True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # the folder is removed
    totals = _totals(arguments.totals)
    found = 0
    with tempfile.TemporaryDirectory(prefix="dptr-fuzz-") as name:
        made: dict[str, Fuzzed] = {}
        turn = min(arguments.turn or arguments.minutes, arguments.minutes)
        for _ in range(math.ceil(arguments.minutes / turn)):
            for reader in arguments.readers:
                place = Path(name) / reader
                if reader not in made:
                    place.mkdir()
                    made[reader] = READERS[reader](place)
                tried = totals.get(reader, {})
                seed = arguments.seed + int(tried.get("inputs", 0))
                for counts in fuzz(made[reader], place, seed, (turn * 60, arguments.inputs), arguments.keep):
                    totals[reader] = _sum(tried, counts)
                    if arguments.totals is not None:
                        write_json(arguments.totals, totals)
                found += int(counts["found"])
                print(f"{reader}: {json.dumps(counts)}", flush=True)
    sys.exit(bool(found))


def _totals(path: Path | None) -> dict[str, dict[str, float]]:
    return json.loads(path.read_text()) if path is not None and path.exists() else {}


def _sum(before: dict[str, float], counts: dict[str, float]) -> dict[str, float]:
    largest = {name: max(before.get(name, 0), counts[name]) for name in ("slowest", "largest_mb")}
    return {name: round(before.get(name, 0) + counts.get(name, 0), 1) for name in {**before, **counts}} | largest


def fuzz(
    fuzzed: Fuzzed, place: Path, seed: int, limits: tuple[float, int | None], keep: Path | None
) -> Iterator[dict[str, float]]:
    """Read broken files until the time or their number is used up.

    Yields:
        how many were refused, read, and wrong so far, and how long that took, after each of the processes.
    """
    counts: dict[str, float] = {"inputs": 0, "read": 0, "refused": 0, "found": 0, "slowest": 0.0, "largest_mb": 0}
    began, known, used = time.monotonic(), set[str](), _cpu_seconds()
    ends = began + limits[0]
    while time.monotonic() < ends and (limits[1] is None or counts["inputs"] < limits[1]):
        report = place / "report.json"
        child = os.fork()
        if child == 0:
            try:
                _work(fuzzed, place, seed + int(counts["inputs"]), ends, limits[1], report)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        status = _watched(child, report)
        if status == _NOT_READ:
            sys.exit("a valid file was not read")
        lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
        report.unlink(missing_ok=True)
        for line in lines:
            counts["inputs"] += 1
            counts[line["came"]] = counts.get(line["came"], 0) + 1
            counts["slowest"] = max(counts["slowest"], line["seconds"])
            counts["largest_mb"] = max(counts["largest_mb"], line["mb"])
        died = status != 0 and f"the reader ended with {status}"
        for problem in {line["problem"] for line in lines if line["problem"]} | ({died} if died else set()):
            counts["found"] += problem not in known
            if problem not in known:
                known.add(problem)
                print(f"  {problem}", flush=True)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                for left in place.glob("wrong-*"):
                    shutil.copy(left, keep / left.name)
                for left in place.glob("broken-*/*") if died else ():
                    shutil.copy(left, keep / f"died-{seed}-{left.parent.name}-{left.name}")
        counts["cpu_seconds"] = round(_cpu_seconds() - used, 1)
        counts["minutes"] = round((time.monotonic() - began) / 60, 1)
        yield counts


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _watched(child: int, report: Path) -> int:
    """Wait for a reader's process, and end it when it tells of no file for too long; return how it ended.

    How long is told by its own clock: on a busy machine it may have to wait for its turn.
    """
    seen, worked, since = -1, 0.0, time.monotonic()
    last = 0.0
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        works = worked_seconds(child)
        if (size := report.stat().st_size if report.exists() else 0) != seen:
            seen, worked = size, works
        if works != last:
            last, since = works, time.monotonic()
        if works - worked > LONGEST_UNHEARD or time.monotonic() - since > LONGEST_ASLEEP:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)


def _work(fuzzed: Fuzzed, place: Path, seed: int, ends: float, inputs: int | None, report: Path) -> None:
    """Read broken files in this process, a line of the report for each; stop at the first that is wrong.

    After some hundred files another process goes on, since readers keep LMDBs open, as no command opens so many.
    """
    signal.signal(signal.SIGPROF, _too_long)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
    generator, tried = random.Random(seed), 0
    # What is not read as it is would only try the reader's front door.
    for source in [] if any(place.glob("valid-*")) else fuzzed.seeds:
        (place / f"valid-{source.name}").mkdir()
        try:
            fuzzed.read(Path(shutil.copy(source, place / f"valid-{source.name}")))
        except Exception:
            traceback.print_exc()
            os._exit(_NOT_READ)
    with report.open("w") as told:
        while time.monotonic() < ends and tried < min(inputs or _FILES_A_PROCESS, _FILES_A_PROCESS):
            source = generator.choice(fuzzed.seeds)
            # A folder of its own: readers know open files by their path.
            shutil.rmtree(place / f"broken-{tried - 1}", ignore_errors=True)
            broken = place / f"broken-{tried}" / source.name
            shutil.rmtree(broken.parent, ignore_errors=True)
            broken.parent.mkdir()
            broken.write_bytes(mutated(source.read_bytes(), generator, source.suffix))
            started, came, problem = time.process_time(), "read", ""
            signal.setitimer(signal.ITIMER_PROF, LONGEST_SECONDS)
            try:
                fuzzed.read(broken)
            except DptrError as error:
                came, problem = "refused", "more than one line" if "\n" in str(error) else ""
            except TimeoutError:
                came, problem = "hung", f"{source.name}: longer than {LONGEST_SECONDS} s"
            except Exception as error:
                came, problem = "refused", "" if disk_error(error) else _where(error)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            problem = problem or (f"{mb:.0f} MB" if mb * 1024**2 > LARGEST_BYTES else "")
            line = {
                "came": came,
                "problem": problem,
                "seconds": round(time.process_time() - started, 2),
                "mb": round(mb),
            }
            told.write(json.dumps(line) + "\n")
            told.flush()
            tried += 1
            if problem:
                shutil.copy(broken, place / f"wrong-{seed}-{tried}-{source.name}")
                break
    os._exit(0)


def _too_long(*_: Any) -> None:
    raise TimeoutError


def _where(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/dptr/" in frame.filename]
    place = ours[-1] if ours else last
    return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:120]}"


if __name__ == "__main__":
    run_script(main)
