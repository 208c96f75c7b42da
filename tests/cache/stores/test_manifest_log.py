"""Shards committed to a manifest's log: as many bytes each, read like a manifest, folded into it in the end."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import pytest

from dptr.cache.errors import DamagedStore
from dptr.cache.file_names import MANIFEST_FILE, MANIFEST_LOG
from dptr.cache.stores import manifest_log
from dptr.cache.stores.file_record import FileRecord
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.shard_record import Shard
from dptr.cache.stores.verify import verify


def shard(folder: Path, number: int) -> Shard:
    name = f"part-{number:05d}"
    paths = [folder / f"{name}{suffix}" for suffix in (".parquet", ".arrow")]
    for path in paths:
        path.write_bytes(b"rows of %d" % number)
    return Shard(name, 2, {path.name: FileRecord.of(path) for path in paths}, {"photos": number})


def begun(folder: Path) -> Manifest:
    folder.mkdir(exist_ok=True)
    manifest = Manifest("orp", {"encoder": "tiny", "weights": "a"})
    manifest.save(folder)
    return manifest


def filled(folder: Path, shards: int = 3) -> Manifest:
    manifest = begun(folder)
    for number in range(shards):
        manifest.commit_shard(folder, shard(folder, number))
    return manifest


def test_a_commit_writes_as_much_behind_many_shards_as_behind_few(tmp_path: Path) -> None:
    manifest, sizes = begun(tmp_path), [0]
    before = (tmp_path / MANIFEST_FILE).read_bytes()
    for number in range(200):
        manifest.commit_shard(tmp_path, shard(tmp_path, 7))
        assert manifest.rows == 2 * (number + 1)
        sizes.append((tmp_path / MANIFEST_LOG).stat().st_size)
    assert (tmp_path / MANIFEST_FILE).read_bytes() == before
    assert {later - earlier for earlier, later in pairwise(sizes[1:])} == {sizes[3] - sizes[2]}
    assert Manifest.load(tmp_path, "orp") == manifest


def test_in_the_end_the_manifest_is_what_saving_it_each_time_gives(tmp_path: Path) -> None:
    manifest = begun(tmp_path / "saved")
    for number in range(3):
        manifest.shards.append(shard(tmp_path / "saved", number))
        manifest.save(tmp_path / "saved")
    filled(tmp_path / "logged").save(tmp_path / "logged")
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("saved", "logged")]
    assert names[0] == names[1]
    assert (tmp_path / "saved" / MANIFEST_FILE).read_bytes() == (tmp_path / "logged" / MANIFEST_FILE).read_bytes()


def test_a_torn_last_line_was_not_committed_and_the_next_run_goes_on(tmp_path: Path) -> None:
    undisturbed = filled(tmp_path / "undisturbed")
    undisturbed.save(tmp_path / "undisturbed")
    folder = tmp_path / "torn"
    filled(folder)
    log = folder / MANIFEST_LOG
    whole = log.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last, len(whole)):
        log.write_bytes(whole[:end])
        assert [shard.name for shard in Manifest.load(folder, "orp").shards] == ["part-00000", "part-00001"]
    again = Manifest.begin_or_go_on(folder, "orp", undisturbed.identity)
    again.commit_shard(folder, shard(folder, 2))
    assert Manifest.load(folder, "orp").shards == undisturbed.shards
    again.save(folder)
    assert (folder / MANIFEST_FILE).read_bytes() == (tmp_path / "undisturbed" / MANIFEST_FILE).read_bytes()


def test_a_log_that_a_kill_left_beside_the_manifest_that_took_it_over_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = filled(tmp_path)
    with monkeypatch.context() as killed:
        killed.setattr(manifest_log, "remove", lambda folder: None)
        manifest.save(tmp_path)
    assert (tmp_path / MANIFEST_LOG).is_file()
    assert Manifest.load(tmp_path, "orp") == manifest
    again = Manifest.load(tmp_path, "orp")
    again.commit_shard(tmp_path, shard(tmp_path, 3))
    again.commit_shard(tmp_path, shard(tmp_path, 4))
    assert [shard.name for shard in Manifest.load(tmp_path, "orp").shards] == [f"part-{n:05d}" for n in range(5)]


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_changed_line_is_damage_and_verify_names_the_log(tmp_path: Path, line: int) -> None:
    filled(tmp_path)
    log = tmp_path / MANIFEST_LOG
    lines = log.read_bytes().split(b"\n")
    lines[line] = lines[line][:-2] + bytes([lines[line][-2] ^ 1]) + lines[line][-1:]
    log.write_bytes(b"\n".join(lines))
    with pytest.raises(DamagedStore, match=r"manifest\.log is damaged"):
        Manifest.load(tmp_path, "orp")
    assert [(found.file, found.problem) for found in verify(tmp_path)] == [
        (MANIFEST_LOG, f"is damaged: line {line + 1} has changed")
    ]


def test_what_else_changed_is_saved_with_the_shard(tmp_path: Path) -> None:
    manifest = filled(tmp_path)
    manifest.details["index"] = {"rows": 1}
    manifest.commit_shard(tmp_path, shard(tmp_path, 3))
    assert not (tmp_path / MANIFEST_LOG).exists()
    assert Manifest.load(tmp_path, "orp") == manifest


@pytest.mark.parametrize("line", [b"not JSON", b"[1]", b"{}", b"\xff", b'{"name": "a", "rows": 2, "files": {}}'])
def test_a_line_with_its_hash_that_is_no_shard_is_damage(line: bytes, tmp_path: Path) -> None:
    filled(tmp_path)
    with (tmp_path / MANIFEST_LOG).open("ab") as log:
        log.write(hashlib.sha256(line).hexdigest().encode() + b" " + line + b"\n")
    with pytest.raises(DamagedStore, match=r"manifest\.log"):
        Manifest.read(tmp_path)
