"""Stores and labelled crops behind an S3-compatible server, which each test starts on this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from pyarrow import fs

from dptr.cache import remote
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
    bucket: fs.FileSystem,
    tmp_path: Path,
    draw_crops: Callable[[Path, Sequence[str]], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    upload(draw_crops(tmp_path / "crops", ["one", "two"]), bucket, "crops")
    found = remote.at_hand(Path("s3://bucket/crops"))
    assert (found / "labels.tsv").read_text() == (tmp_path / "crops" / "labels.tsv").read_text()
    assert (found / "1.png").read_bytes() == (tmp_path / "crops" / "1.png").read_bytes()
    assert run_command(["finetune", "--data", "s3://bucket/nothing", "--from", "none", "--quiet"]) == 2
    assert "there is no s3://bucket/nothing" in capsys.readouterr().err


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


def test_the_cache_is_bounded(
    bucket: fs.FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("old.tar", 600), ("new.tar", 600), ("large.tar", 2000)):
        with bucket.open_output_stream(name) as stream:
            stream.write(bytes(size))
    monkeypatch.setenv(remote.GIGABYTES, "1e-6")
    old = remote.at_hand(Path("s3://bucket/old.tar"))
    assert old.stat().st_size == 600
    assert remote.at_hand(Path("s3://bucket/new.tar")).exists()
    assert not old.exists(), "what was used longest ago makes room"
    assert run_command(["finetune", "--data", "s3://bucket/large.tar", "--from", "none", "--quiet"]) == 2
    assert "the cache in" in capsys.readouterr().err


def test_a_path_stays_as_it_is(tmp_path: Path) -> None:
    assert remote.at_hand(tmp_path) == tmp_path
    assert remote.at_hand(Path()) == Path()


def put(key: str, content: bytes) -> None:
    """Store an object under a key that clients would not send."""
    from moto.s3.models import s3_backends

    backend = next(iter(s3_backends.values()))["aws"]
    backend.put_object("bucket", key, content)


def test_an_object_whose_name_leads_out_of_the_cache_is_refused_and_named(
    bucket: fs.FileSystem, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put("prompts/a.txt", b"whole")
    put("prompts/../../bucket/evil", b"evil")
    put("evil", b"evil")  # what a client gets that takes the path apart
    before = {*tmp_path.rglob("*")}
    assert run_command(["evaluate", "--data", "s3://bucket/prompts", "--quiet"]) == 2
    told = capsys.readouterr().err
    assert "prompts/../../bucket/evil has `..` in its name" in told
    assert {path.name for path in {*tmp_path.rglob("*")} - before} == {"cache", ".lock"}, "nothing was written"


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
