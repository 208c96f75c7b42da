"""Stores and labelled crops behind an S3-compatible server, which each test starts on this machine."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
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


def test_what_is_fetched_stays_until_it_is_removed(
    bucket: fs.FileSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def put(content: bytes) -> None:
        with bucket.open_output_stream("training.tar") as stream:
            stream.write(content)

    put(b"first")
    training = remote.at_hand(Path("s3://bucket/training.tar"))
    set_quiet(False)
    put(b"second")
    assert remote.at_hand(Path("s3://bucket/training.tar")) == training
    assert training.read_bytes() == b"first"
    assert f"remove this folder and {training.parent.name}.fetched" in capsys.readouterr().err
    (tmp_path / "cache" / f"{training.parent.name}.fetched").unlink()
    assert remote.at_hand(Path("s3://bucket/training.tar")).read_bytes() == b"second"


def test_what_an_interrupted_command_fetched_is_kept(bucket: fs.FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        with bucket.open_output_stream(f"crops/{name}.txt") as stream:
            stream.write(name.encode())
    fetch = remote._fetch_one

    def interrupted(files: fs.FileSystem, one: fs.FileInfo, file: Path, stopped: threading.Event) -> None:
        if file.name == "b.txt":
            raise KeyboardInterrupt
        fetch(files, one, file, stopped)

    monkeypatch.setattr(remote, "_fetch_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        remote.at_hand(Path("s3://bucket/crops"))
    monkeypatch.setattr(remote, "_fetch_one", fetch)
    (kept,) = remote.cache_folder().rglob("a.txt")
    before = kept.stat().st_ino
    found = remote.at_hand(Path("s3://bucket/crops"))
    assert (found / "b.txt").read_bytes() == b"b"
    assert (found / "a.txt").stat().st_ino == before


def test_credentials_of_an_address_are_not_printed(bucket: fs.FileSystem, capsys: pytest.CaptureFixture[str]) -> None:
    set_quiet(False)
    with bucket.open_output_stream("a.txt") as stream:
        stream.write(b"a")
    assert remote.at_hand(Path("s3://testing:SECRET@bucket/a.txt")).read_bytes() == b"a"
    with pytest.raises(UserError, match=r"there is no s3://\*\*\*@bucket/b"):
        remote.at_hand(Path("s3://testing:SECRET@bucket/b"))
    assert "SECRET" not in capsys.readouterr().err


def test_a_user_without_a_home_has_a_cache_for_one_process(
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
    assert remote.cache_folder() == folder
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
