"""Fuzzes every reader of foreign input: valid files (``fuzzed_readers.py``) are broken at random, and read.

A reader may reject what it is given, in one line; it may not raise anything else, take longer than 10 s of CPU time, or
let its process grow above 2 GB. Each reader works in a process of its own, so that even a crash is found; the broken
file stays in --keep. Files with a hash of themselves get a new one, or nothing behind it would be tried.

Smallest size: --readers corpus images manifest --inputs 10
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path
from typing import Any

from common import at_least
from fuzzed_readers import READERS, Fuzzed

from dptr.cache.errors import DptrError, disk_error, run_script
from dptr.cache.progress import set_quiet

LONGEST_SECONDS = 10
#: In a library that hears no signal; and without any CPU time, as one that waits for what never comes.
LONGEST_UNHEARD, LONGEST_ASLEEP = 60, 300
LARGEST_BYTES = 2 << 30
#: More is rejected, so that a reader that wants it harms nobody else on the machine.
_MOST_BYTES = 3 << 30
_FILES_A_PROCESS = 500
#: How a process ends that could not read a valid file.
_NOT_READ = 3
_PIECES = [b"\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80", b"-1", b"1e999", b"NaN", b"\n", b'"', b"{"]
_PIECES += [b"[" * 20_000, b"9" * 400, b"\xef\xbb\xbf", b"\xed\xa0\x80", b"../", b"\r\n\r", b"'", b"select"]
_PIECES += [b"\xe2\x80\xae"]
_VALUES: list[Any] = [None, True, 0, 1, -1, 255, 1 << 31, 1 << 63, 10**400, 0.5, 1e308, float("nan"), "", "x"]
_VALUES += ["../../x", "\0", "\ud800", "é" * 300, [], [[]], {}, {"": 0}, [1] * 300]
#: Of these, half of the broken files keep their size: what lies behind a check of offsets is tried, too.
_KEEP_THEIR_SIZE = (".tar", ".mdb", ".lmdb", ".parquet", ".zip", ".arrow", ".npy", ".ttf", ".otf", ".png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--minutes", type=float, default=60.0, help="of each reader")
    parser.add_argument("--inputs", type=at_least(1), default=1 << 60, help="of each reader, at most")
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument("--keep", type=Path, help="folder for inputs that were not rejected as they should be")
    arguments = parser.parse_args()
    set_quiet(True)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="dptr-fuzz-") as name:
        for reader in arguments.readers:
            place = Path(name) / reader
            place.mkdir()
            ends = time.monotonic() + 60 * arguments.minutes
            wrong += fuzz(reader, place, arguments.seed, ends, arguments.inputs, arguments.keep)
    sys.exit(bool(wrong))


def fuzz(reader: str, place: Path, seed: int, ends: float, inputs: int, keep: Path | None) -> int:
    """Read broken files of one kind until the time or their number is used up; return how many were read wrong."""
    fuzzed = READERS[reader](place)
    counts: dict[str, float] = {"inputs": 0, "read": 0, "rejected": 0, "wrong": 0, "slowest": 0.0, "largest_mb": 0}
    problems: set[str] = set()
    while time.monotonic() < ends and counts["inputs"] < inputs:
        report = place / "report.jsonl"
        report.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            try:
                first = int(counts["inputs"])
                if first == 0:
                    _read_valid(fuzzed, place)
                _work(fuzzed, place, seed + first, ends, min(inputs - first, _FILES_A_PROCESS), report)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == _NOT_READ:
            sys.exit(f"{reader}: a valid file was not read")
        lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
        for line in lines:
            counts["inputs"] += 1
            counts[line["came"]] += 1
            counts["slowest"] = max(counts["slowest"], line["seconds"])
            counts["largest_mb"] = max(counts["largest_mb"], line["mb"])
        found = {line["problem"] for line in lines if line["problem"]}
        if status:
            counts["inputs"] += 1
            found.add(f"the reader ended with {status}")
        for problem in found - problems:
            print(f"  {problem}", flush=True)
        problems |= found
        if keep is not None and found:
            shutil.copytree(place / "broken", keep / f"{reader}-{seed}-{int(counts['inputs'])}")
    counts["wrong"] = len(problems)
    print(f"{reader}: {json.dumps(counts)}", flush=True)
    return len(problems)


def _read_valid(fuzzed: Fuzzed, place: Path) -> None:
    """Read the valid files: one that is rejected as it is would only try the reader's first check."""
    for source in fuzzed.seeds:
        valid = place / f"valid-{source.name}"
        valid.mkdir()
        try:
            fuzzed.read(Path(shutil.copy(source, valid)))
        except Exception:
            traceback.print_exc()
            os._exit(_NOT_READ)


def _work(fuzzed: Fuzzed, place: Path, seed: int, ends: float, inputs: int, report: Path) -> None:
    """Read broken files in this process, a line of the report for each; stop at the first that is read wrong."""
    signal.signal(signal.SIGPROF, _too_long)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
    generator = random.Random(seed)
    with report.open("w") as told:
        for number in range(inputs):
            source = generator.choice(fuzzed.seeds)
            shutil.rmtree(place / "broken", ignore_errors=True)
            # A folder of its own: readers know open files by their path.
            broken = place / "broken" / str(number) / source.name
            broken.parent.mkdir(parents=True)
            broken.write_bytes(mutated(source.read_bytes(), generator, source.suffix))
            started, came, problem = time.process_time(), "read", ""
            resource.setrlimit(resource.RLIMIT_CPU, (int(started) + LONGEST_UNHEARD, resource.RLIM_INFINITY))
            signal.setitimer(signal.ITIMER_PROF, LONGEST_SECONDS)
            signal.alarm(LONGEST_ASLEEP)
            try:
                fuzzed.read(broken)
            except DptrError as error:
                came, problem = "rejected", "more than one line" if "\n" in str(error) else ""
            except TimeoutError:
                problem = f"{source.name}: longer than {LONGEST_SECONDS} s"
            except Exception as error:
                came, problem = "rejected", "" if disk_error(error) else _where(error)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            problem = problem or (f"{source.name}: {mb:.0f} MB" if mb * 1024**2 > LARGEST_BYTES else "")
            seconds = round(time.process_time() - started, 2)
            told.write(json.dumps({"came": came, "problem": problem, "seconds": seconds, "mb": round(mb)}) + "\n")
            told.flush()
            if problem or time.monotonic() > ends:
                break
    os._exit(0)


def _too_long(*_: Any) -> None:
    raise TimeoutError


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = [*frames[-1:], *(frame for frame in frames if "/dptr/" in frame.filename)][-1]
    return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:120]}"


def mutated(data: bytes, generator: random.Random, suffix: str = "") -> bytes:
    """Return ``data`` broken in one to eight places: its bytes, or values of JSON and of a safetensors header."""
    by_value = generator.random() < 0.5
    if suffix == ".json" and by_value:
        return _json(data, generator)
    if suffix == ".safetensors" and by_value:
        (length,) = struct.unpack_from("<Q", data)
        header = _json(data[8 : 8 + length], generator)
        return struct.pack("<Q", len(header)) + header + data[8 + length :]
    broken = _bytes(data, generator, suffix in _KEEP_THEIR_SIZE and by_value)
    if by_value and suffix in (".tar", ".png"):
        return _summed_tar(broken) if suffix == ".tar" else _summed_png(broken)
    return bytes(broken)


def _bytes(data: bytes, generator: random.Random, keep_size: bool) -> bytearray:
    """Bits flipped, pieces replaced, and without ``keep_size`` also cut, doubled, and put in."""
    broken = bytearray(data)
    for _ in range(generator.choice((1, 1, 1, 2, 4, 8))):
        at = generator.randrange(len(broken) + 1)
        piece = bytes(broken[at : at + generator.choice((1, 4, 16, 200))])
        match generator.randrange(3 if keep_size else 7):
            case 0 if at < len(broken):
                broken[at] ^= 1 << generator.randrange(8)
            case 1:
                new = generator.choice([generator.randbytes(4), *_PIECES[:4]])[: len(broken) - at]
                broken[at : at + len(new)] = new
            case 2:
                elsewhere = generator.randrange(len(broken) + 1)
                broken[elsewhere : elsewhere + len(piece)] = piece[: len(broken) - elsewhere]
            case 3:
                del broken[at : at + len(piece)]
            case 4:
                broken[at:at] = piece * generator.choice((1, 2, 100))
            case 5:
                broken[at:at] = generator.choice(_PIECES)
            case 6 if generator.random() < 0.2:
                del broken[at:]
    return broken


def _json(data: bytes, generator: random.Random) -> bytes:
    """Replace, remove, double or rename values of objects and lists."""
    value = [json.loads(data)]
    for _ in range(generator.choice((1, 1, 2, 4))):
        container: Any = generator.choice(list(_containers(value)) or [value])
        if not container:
            break
        place = generator.choice([*(container if isinstance(container, dict) else range(len(container)))])
        match generator.randrange(4):
            case 0:
                del container[place]
            case 1 if isinstance(container, dict):
                container[f"{place}x"] = container.pop(place)
            case 2:
                container[place] = [container[place]]
            case _:
                container[place] = generator.choice(_VALUES)
    return json.dumps(value[0] if value else None).encode("utf-8", "surrogatepass")


def _containers(value: Any) -> Any:
    if isinstance(value, dict | list) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _containers(inner)


def _summed_tar(broken: bytearray) -> bytes:
    """Give each header of an archive the checksum of its bytes."""
    at = 0
    while at + 512 <= len(broken) and broken[at] != 0:
        broken[at + 148 : at + 156] = b" " * 8
        broken[at + 148 : at + 156] = b"%06o\0 " % (sum(broken[at : at + 512]) & 0o777777)
        digits = bytes(broken[at + 124 : at + 135]).strip(b"\0 ")
        if not re.fullmatch(rb"[0-7]+", digits):
            break
        at += 512 + -(-int(digits, 8) // 512) * 512
    return bytes(broken)


def _summed_png(broken: bytearray) -> bytes:
    """Give each chunk of a picture the checksum of its bytes."""
    at = 8
    while at + 12 <= len(broken):
        end = at + 8 + struct.unpack_from(">I", broken, at)[0]
        if end + 4 > len(broken):
            break
        struct.pack_into(">I", broken, end, zlib.crc32(broken[at + 4 : end]))
        at = end + 4
    return bytes(broken)


if __name__ == "__main__":
    run_script(main)
