"""Stores and labelled crops behind an S3-compatible server, which each test starts on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pyarrow import fs

from dptr.cache import remote
from dptr.cache.errors import UserError
from dptr.cache.progress import set_quiet
from dptr.cli import run_command

server = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    yield "{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> fs.FileSystem:
    """An empty bucket, in which paths begin; addresses like ``s3://bucket/store`` are of this server."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv(remote.FOLDER, str(tmp_path / "cache"))
    files = fs.S3FileSystem(endpoint_override=endpoint, scheme="http", allow_bucket_creation=True)
    if files.get_file_info("bucket").type == fs.FileType.Directory:
        files.delete_dir_contents("bucket")
    else:
        files.create_dir("bucket")
    return fs.SubTreeFileSystem("bucket", files)


def upload(folder: Path, bucket: fs.FileSystem, name: str) -> None:
    fs.copy_files(str(folder), name, source_filesystem=fs.LocalFileSystem(), destination_filesystem=bucket)


def pretrain(tmp_path: Path, *more: str) -> int:
    small = ["decoder.dim=32", "decoder.heads=2", "decoder.feed_forward=32", "decoder.layers=1"]
    changes = [f"--set={change}" for change in (*small, "pretrain.batch_size=4")]
    stores = ["--prompts", "s3://bucket/prompts", "--orp", "s3://bucket/orp", "--workspace", str(tmp_path / "ws")]
    return run_command(["pretrain", "--steps", "3", *changes, *stores, "--device", "cpu", "--quiet", *more])


@pytest.mark.slow
def test_pre_training_from_object_storage_fetches_once(
    bucket: fs.FileSystem, stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("prompts", "orp"):
        upload(stores / name, bucket, name)
    assert pretrain(tmp_path, "-o", str(tmp_path / "one"), "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 3
    fetched = {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*.arrow")}
    assert fetched
    assert pretrain(tmp_path, "-o", str(tmp_path / "other")) == 0
    assert {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*.arrow")} == fetched, "not fetched again"


@pytest.mark.slow
def test_a_damaged_object_is_found_and_named(
    bucket: fs.FileSystem, stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(stores / "prompts", tmp_path / "prompts")
    damaged = sorted(copy.glob("part-*.arrow"))[0]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    upload(copy, bucket, "prompts")
    upload(stores / "orp", bucket, "orp")
    assert pretrain(tmp_path) == 3
    assert f"s3://bucket/prompts/{damaged.name} is damaged" in capsys.readouterr().err
    upload(stores / "prompts", bucket, "prompts")
    assert pretrain(tmp_path) == 0, "once it is copied there again"


def test_labelled_crops_are_fetched_and_an_address_without_any_is_told(
    bucket: fs.FileSystem, tmp_path: Path, draw_crops: Callable[[Path, Sequence[str]], Path]
) -> None:
    upload(draw_crops(tmp_path / "crops", ["one", "two"]), bucket, "crops")
    found = remote.at_hand(Path("s3://bucket/crops"))
    assert (found / "labels.tsv").read_text() == (tmp_path / "crops" / "labels.tsv").read_text()
    assert (found / "1.png").read_bytes() == (tmp_path / "crops" / "1.png").read_bytes()
    with pytest.raises(UserError, match="there is no s3://bucket/nothing"):
        remote.at_hand(Path("s3://bucket/nothing"))


def test_what_has_changed_there_is_fetched_again_and_what_is_gone_is_gone(
    bucket: fs.FileSystem, tmp_path: Path, draw_crops: Callable[[Path, Sequence[str]], Path]
) -> None:
    upload(draw_crops(tmp_path / "crops", ["one", "two"]), bucket, "crops")
    remote.at_hand(Path("s3://bucket/crops"))
    bucket.delete_file("crops/1.png")
    with bucket.open_output_stream("crops/labels.tsv") as stream:
        stream.write(b"0.png\tother\n")
    found = remote.at_hand(Path("s3://bucket/crops"))
    assert (found / "labels.tsv").read_text() == "0.png\tother\n"
    assert not (found / "1.png").exists()


def test_what_is_fetched_stays_until_it_is_removed(bucket: fs.FileSystem) -> None:
    for name in ("training.tar", "validation.tar"):
        with bucket.open_output_stream(name) as stream:
            stream.write(name.encode())
    training = remote.at_hand(Path("s3://bucket/training.tar"))
    fetched = training.stat().st_ino
    assert remote.at_hand(Path("s3://bucket/validation.tar")).read_text() == "validation.tar"
    assert remote.at_hand(Path("s3://bucket/training.tar")) == training
    assert training.stat().st_ino == fetched, "not fetched again"


@pytest.mark.parametrize("damage", [b"word", b"word of another length", None])
def test_a_damaged_file_of_the_cache_is_fetched_again(bucket: fs.FileSystem, damage: bytes | None) -> None:
    for name in ("crops/a.txt", "crops/b.txt"):
        with bucket.open_output_stream(name) as stream:
            stream.write(b"good")
    found = remote.at_hand(Path("s3://bucket/crops"))
    other = (found / "b.txt").stat().st_ino
    if damage is None:
        (found / "a.txt").unlink()
    else:
        (found / "a.txt").write_bytes(damage)
    assert (remote.at_hand(Path("s3://bucket/crops")) / "a.txt").read_bytes() == b"good"
    assert (found / "b.txt").stat().st_ino == other


class Short(BaseHTTPRequestHandler):
    """Serves one object of 1,000 bytes, of which at most 600 come although nothing says so."""

    protocol_version = "HTTP/1.1"
    content = bytes(range(250)) * 4
    sent = 600

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(200, b"", len(self.content))

    def do_GET(self) -> None:
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        part = self.content[first : last + 1][: self.sent]
        self._answer(206, part, len(part))

    def _answer(self, code: int, body: bytes, length: int) -> None:
        self.send_response(code)
        headers = {"Content-Length": length, "ETag": '"a"', "Last-Modified": "Mon, 30 Nov 2020 00:00:00 GMT"}
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv(remote.FOLDER, str(tmp_path / "cache"))
    running = ThreadingHTTPServer(("127.0.0.1", 0), Short)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"s3://bucket/a.tar?scheme=http&endpoint_override=127.0.0.1:{running.server_port}"
    running.shutdown()


def test_an_object_that_comes_short_is_an_error_and_nothing_of_it_is_kept(
    short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"a\.tar ends before its 1,000 bytes"):
        remote.at_hand(Path(short))
    assert list((tmp_path / "cache").rglob("a.tar")) == []
    monkeypatch.setattr(Short, "sent", 1000)
    assert remote.at_hand(Path(short)).read_bytes() == Short.content
    for last in (0x5A, 0xA5, 0x3C):
        monkeypatch.setattr(Short, "content", bytes(999) + bytes([last]))
        address = short.replace("a.tar", f"{last}.tar")
        assert remote.at_hand(Path(address)).read_bytes() == Short.content


HUNG = """
import signal, socket, sys, threading, time
from pathlib import Path
from dptr.cache import remote
from dptr.cache.errors import UserError
from dptr.cache.progress import set_quiet
server = socket.create_server(("127.0.0.1", 0))
if sys.argv[1] == "interrupted":
    threading.Timer(1, signal.raise_signal, [signal.SIGINT]).start()
else:
    remote._ANSWERING = 1.0
started = time.monotonic()
try:
    remote.at_hand(Path(f"s3://bucket/a?scheme=http&endpoint_override=127.0.0.1:{server.getsockname()[1]}"))
except (KeyboardInterrupt, remote.UserError) as error:
    print(type(error).__name__, time.monotonic() - started, flush=True)
"""


@pytest.mark.parametrize(("how", "ends_with"), [("interrupted", "KeyboardInterrupt"), ("limited", "UserError")])
def test_a_server_that_does_not_answer_is_given_up_and_signals_are_handled(
    how: str, ends_with: str, tmp_path: Path
) -> None:
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "testing")
    environment = {**os.environ, **keys, remote.FOLDER: str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", HUNG, how], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    name, seconds = done.stdout.split()
    assert name == ends_with
    assert float(seconds) < 6


def test_credentials_of_an_address_are_not_printed(bucket: fs.FileSystem, capsys: pytest.CaptureFixture[str]) -> None:
    set_quiet(False)
    with bucket.open_output_stream("a.txt") as stream:
        stream.write(b"a")
    assert remote.at_hand(Path("s3://testing:SECRET@bucket/a.txt")).read_bytes() == b"a"
    with pytest.raises(UserError, match="there is no s3://bucket/b"):
        remote.at_hand(Path("s3://testing:SECRET@bucket/b"))
    assert "SECRET" not in capsys.readouterr().err


def test_a_user_without_a_home_has_a_cache_that_others_cannot_plant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (remote.FOLDER, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    set_quiet(False)
    remote._temporary_folder.cache_clear()
    folder = remote.cache_folder()
    assert (folder.parent, folder.stat().st_mode & 0o777) == (tmp_path, 0o700)
    assert str(folder) in capsys.readouterr().err
    remote._temporary_folder.cache_clear()
    assert remote.cache_folder() == folder
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    remote._temporary_folder.cache_clear()
    assert remote.cache_folder() != folder
    remote._temporary_folder.cache_clear()


def test_a_path_stays_as_it_is(tmp_path: Path) -> None:
    assert remote.at_hand(tmp_path) == tmp_path
    assert remote.at_hand(Path()) == Path()


def put(key: str, content: bytes) -> None:
    """Store an object under a key that clients would not send."""
    from moto.s3.models import s3_backends

    backend = next(iter(s3_backends.values()))["aws"]
    backend.put_object("bucket", key, content)


def test_an_object_whose_name_leads_out_of_the_cache_is_rejected_and_named(
    bucket: fs.FileSystem, tmp_path: Path
) -> None:
    put("prompts/a.txt", b"whole")
    put("prompts/../../bucket/evil", b"evil")
    put("evil", b"evil")  # what a client gets that takes the path apart
    before = {*tmp_path.rglob("*")}
    with pytest.raises(UserError, match=r"prompts/\.\./\.\./bucket/evil has `\.\.` in its name"):
        remote.at_hand(Path("s3://bucket/prompts"))
    assert [path for path in {*tmp_path.rglob("*")} - before if path.is_file() and path.suffix != ".lock"] == []


@pytest.mark.parametrize("record", [b"", b"{", b"[1]", b'{"labels.tsv": 1}', b'{"../../mine.txt": [1, 1]}', b"\xff"])
def test_where_the_record_of_what_was_fetched_is_damaged_it_is_fetched_again(
    bucket: fs.FileSystem,
    tmp_path: Path,
    draw_crops: Callable[[Path, Sequence[str]], Path],
    capsys: pytest.CaptureFixture[str],
    record: bytes,
) -> None:
    crops = draw_crops(tmp_path / "crops", ["one", "two"])
    upload(crops, bucket, "crops")
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    found = remote.at_hand(Path("s3://bucket/crops"))
    (found / "labels.tsv").write_text("other")
    (found / ".fetched.json").write_bytes(record)
    assert remote.at_hand(Path("s3://bucket/crops")) == found
    assert ".fetched.json is damaged" in capsys.readouterr().err
    assert (found / "labels.tsv").read_text() == (crops / "labels.tsv").read_text()
    assert mine.read_text() == "mine"


def test_a_damaged_record_of_another_address_is_no_hindrance(bucket: fs.FileSystem, tmp_path: Path) -> None:
    for name in ("old.tar", "new.tar"):
        with bucket.open_output_stream(name) as stream:
            stream.write(bytes(600))
    old = remote.at_hand(Path("s3://bucket/old.tar"))
    (old.parent / ".fetched.json").write_text("{")
    assert remote.at_hand(Path("s3://bucket/new.tar")).stat().st_size == 600
    assert remote.at_hand(Path("s3://bucket/old.tar")).stat().st_size == 600


def test_an_object_named_as_the_record_is_not_taken_for_it(bucket: fs.FileSystem, tmp_path: Path) -> None:
    for name in ("crops/.fetched.json", "crops/labels.tsv"):
        with bucket.open_output_stream(name) as stream:
            stream.write(b"not a record")
    found = remote.at_hand(Path("s3://bucket/crops"))
    assert list(json.loads((found / ".fetched.json").read_text())) == ["labels.tsv"]
