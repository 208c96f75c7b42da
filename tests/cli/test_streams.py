"""What a shell does to the standard streams, and a system without a home, ends no command."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dptr.cache.errors import UserError
from dptr.cache.printing import visible, without_credentials
from dptr.cache.progress import note
from dptr.cache.stores.checksummed import write_json
from dptr.cache.stores.lock import this_process

DPTR = f"{shlex.quote(sys.executable)} -m dptr"
NO_HOME = """
import os, pwd, sys
os.environ.pop("HOME", None)
def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
from dptr.cli import run_command
"""


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 20), "white").save(tmp_path / "a.png")
    (tmp_path / "words.txt").write_text("street road lane")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "code"),
    [("read a.png 2>&-", 0), ("read - <&-", 2), ("sql <&- 2>&-", 0), ("read gone.png 2>&- >&-", 2)],
)
def test_a_closed_stream_ends_no_command(picture: Path, command: str, code: int) -> None:
    (picture / "dptr_data" / "runs" / "one").mkdir(parents=True)
    write_json(picture / "dptr_data" / "runs" / "one" / "run.json", {"kind": "finetune"})
    done = shell(f"{DPTR} {command}", picture)
    assert done.returncode == code
    assert bool(done.stdout) == (command == "read a.png 2>&-")
    assert done.stderr == "" or "no image named" in done.stderr


@pytest.mark.parametrize("rows", [3, 300_000])
def test_who_reads_only_the_first_line_gets_it_and_no_error(picture: Path, rows: int) -> None:
    (picture / "dptr_data" / "runs" / "one").mkdir(parents=True)
    write_json(picture / "dptr_data" / "runs" / "one" / "run.json", {"kind": "finetune"})
    query = f'"select i from range({rows}) t(i)" --format csv'
    done = shell(f"set -o pipefail; {DPTR} sql {query} | head -1", picture)
    assert (done.stderr, done.stdout) == ("", "i\n")
    assert done.returncode in (0, 141)


def test_help_ends_silently_with_its_reader(picture: Path) -> None:
    # More than a pipe holds at once is not needed: the reader has ended before Python starts to print.
    done = shell(f"set -o pipefail; {DPTR} embed-text --help | true", picture)
    assert (done.stderr, done.returncode) == ("", 141)


def test_a_system_without_home_and_user_runs_the_commands(picture: Path) -> None:
    (picture / "labels.tsv").write_text("a.png\tstreet\n")
    # One start of Python for all of them.
    script = NO_HOME + "\n".join(
        f"assert run_command({[*command, '--quiet']!r}) == 0"
        for command in (
            ["doctor"],
            ["evaluate", str(picture), "--workspace", "work"],
            ["render-words", "words.txt", "-o", "crops", "--count", "2"],
            ["init", str(picture)],
        )
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=picture, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("fetching s3://KEY:SECRET@bucket/store", "fetching s3://***@bucket/store"),
        ("no s3://KEY:SE/CR+ET=@bucket/a:b@c", "no s3://***@bucket/a:b@c"),
        ("s3:/KEY:SECRET@bucket and gs://ID:SECRET@other", "s3:/***@bucket and gs://***@other"),
        ("https://host/file?X-Amz-Signature=SECRET&x=1", "https://host/file?X-Amz-Signature=***&x=1"),
        ("hf://datasets/me/words@main/a.txt", "hf://datasets/me/words@main/a.txt"),
        ("s3://bucket/icon@2x.png", "s3://bucket/icon@2x.png"),
        ("12:30 me@host", "12:30 me@host"),
    ],
)
def test_credentials_in_addresses_are_left_out(
    said: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert without_credentials(said) == shown
    note(said)
    assert capsys.readouterr().err == f"{shown}\n"
    assert str(UserError(said)) == shown
    monkeypatch.setattr(sys, "argv", ["dptr", "finetune", said])
    assert "SECRET" not in this_process()
    assert "SE/CR" not in this_process()


@pytest.mark.parametrize("character", ["\u202e", "\u2066", "\x1b", "\u2028"])
def test_what_moves_text_about_is_shown_as_its_escape(character: str) -> None:
    assert visible(f"a{character}b") == f"a{character.encode('unicode_escape').decode()}b"
    assert visible("क्‍ष שלום 👩‍👧") == "क्‍ष שלום 👩‍👧"
