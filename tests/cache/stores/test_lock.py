"""One writer at a time, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dptr.cache.errors import UserError
from dptr.cache.stores.files import TEMPORARY_SUFFIX
from dptr.cache.stores.lock import locked, locked_file

HOLD = """
import sys, time
from pathlib import Path
from dptr.cache.stores.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock of ``folder``."""
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    return owner


def test_the_second_process_is_told_who_writes(tmp_path: Path) -> None:
    owner = hold(tmp_path / "store")
    try:
        with pytest.raises(UserError) as caught, locked(tmp_path / "store"):
            pass
    finally:
        owner.kill()
        owner.wait()
    told = str(caught.value)
    assert f"process {owner.pid} on {os.uname().nodename} since 20" in told
    assert "\n" not in told
    assert caught.value.exit_code == 2


def test_the_lock_of_a_killed_process_is_taken_over_and_what_it_left_is_removed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    owner = hold(tmp_path)
    left = tmp_path / f".part-00000.arrow.{owner.pid}{TEMPORARY_SUFFIX}"
    left.write_bytes(b"half")
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with locked(tmp_path):
        assert not left.exists()
    assert f"process {owner.pid}" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with locked(tmp_path / "a"):
        assert (tmp_path / "a").is_dir()
    with locked_file(tmp_path / "b.lmdb"):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a"):
        (tmp_path / "a" / "result").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result"]


def test_the_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"), locked(tmp_path):
        raise ValueError("wrong")
    with locked(tmp_path):
        pass


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"), locked(tmp_path / "file"):
        pass
    with pytest.raises(UserError, match="cannot write to"), locked_file(tmp_path / "file" / "x.lmdb"):
        pass


def run_two(arguments: list[str], folder: Path) -> list[tuple[int, str]]:
    """Start the same command twice at once; return exit code and stderr of each, the winner first."""
    command = [sys.executable, "-m", "dptr", *arguments, "--workspace", str(folder / "ws")]
    started = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    # However soon it would be done: who holds the lock waits until the other has come to it.
    winner = wait_for_owner(folder, started)
    os.kill(winner, signal.SIGSTOP)
    try:
        (second,) = (process for process in started if process.pid != winner)
        second.wait(timeout=120)
    finally:
        os.kill(winner, signal.SIGCONT)
    return sorted((process.wait(), process.stderr.read() if process.stderr else "") for process in started)


def wait_for_owner(folder: Path, started: list[subprocess.Popen[str]]) -> int:
    """Return the process id of the first of ``started`` that holds a lock below ``folder``."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for path in folder.rglob("*.owner"):
            with suppress(FileNotFoundError):  # done with
                for process in started:
                    if path.read_text().startswith(f"process {process.pid} "):
                        return process.pid
        time.sleep(0.001)
    raise AssertionError("neither took a lock")


def words(folder: Path, count: int) -> Path:
    letters = "abcdefghij"
    lines = ["".join(letters[int(digit)] for digit in f"{number:05d}") for number in range(count)]
    (folder / "words.txt").write_text("\n".join(lines) + "\n")
    return folder / "words.txt"


def assert_one_was_told(ended: list[tuple[int, str]]) -> None:
    (first, _), (second, told) = ended
    assert (first, second) == (0, 2), ended
    assert told.splitlines()[-1].startswith("error: ")
    assert "is being written by process" in told


@pytest.mark.slow
def test_two_embed_text_on_one_store(tmp_path: Path) -> None:
    corpus = words(tmp_path, 3000)
    assert_one_was_told(run_two(["embed-text", str(corpus), "--shard-rows", "200", "--device", "cpu"], tmp_path))
    from dptr.cache.stores.prompts import PromptStore
    from dptr.cache.stores.verify import verify

    store = tmp_path / "ws" / "prompts"
    assert verify(store) == []
    assert len(set(PromptStore(store).labels.to_pylist())) == 3000


@pytest.mark.slow
def test_two_pretrain_into_one_run(tmp_path: Path) -> None:
    corpus = words(tmp_path, 300)
    embed = [sys.executable, "-m", "dptr", "embed-text", str(corpus), "--workspace", str(tmp_path / "ws"), "--quiet"]
    subprocess.run(embed, check=True, stdout=subprocess.DEVNULL)
    sizes = {"decoder.dim": 32, "decoder.heads": 2, "decoder.feed_forward": 32, "decoder.layers": 1}
    training = {"pretrain.batch_size": 8, "pretrain.log_every": 1, "noise.ratio": 0, "pretrain.checkpoint_every": 50}
    changes = [f"--set={key}={value}" for key, value in (sizes | training).items()]
    run = tmp_path / "run"
    assert_one_was_told(run_two(["pretrain", "--steps", "200", *changes, "-o", str(run), "--device", "cpu"], tmp_path))
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 201))


@pytest.mark.slow
@pytest.mark.parametrize("out", ["crops", "crops.lmdb"])
def test_two_render_words_into_one_place(tmp_path: Path, out: str) -> None:
    corpus = words(tmp_path, 400)
    assert_one_was_told(run_two(["render-words", str(corpus), "-o", str(tmp_path / out)], tmp_path))
    from dptr.cache.crops.dataset import WordImages
    from dptr.cache.text.charset import Charset
    from dptr.cache.text.normalization import Normalization

    assert len(WordImages.open([tmp_path / out], Charset.named("94"), Normalization())) == 400
