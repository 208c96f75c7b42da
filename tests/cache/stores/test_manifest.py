from __future__ import annotations

from pathlib import Path

import pytest

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.manifest import FileRecord, Manifest, Shard, require_same_encoder
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.verify import verify


def saved(folder: Path) -> Manifest:
    paths = [folder / name for name in ("part-00000.parquet", "part-00000.arrow")]
    for path in paths:
        path.write_bytes(b"embeddings")
    manifest = Manifest("prompts", {"encoder": "tiny", "weights": "a"})
    manifest.shards.append(Shard("part-00000", 3, {path.name: FileRecord.of(path) for path in paths}))
    manifest.save(folder)
    return manifest


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    checksummed.write_json(path, {**checksummed.read_json(path), **changes})


def test_round_trip(tmp_path: Path) -> None:
    manifest = saved(tmp_path)
    loaded = Manifest.load(tmp_path, "prompts")
    assert loaded == manifest
    assert loaded.rows == 3


def test_files_that_were_withdrawn_and_listed_again_leave_no_trace(tmp_path: Path) -> None:
    manifest = saved(tmp_path)
    for name in ("index.faiss", "quarantine.parquet"):
        (tmp_path / name).write_bytes(name.encode())
    manifest.commit_files(tmp_path, "index.faiss", "quarantine.parquet")
    undisturbed = (tmp_path / "manifest.json").read_bytes()
    manifest.withdraw_files(tmp_path, "index.faiss")
    assert (tmp_path / "manifest.json").read_bytes() != undisturbed
    manifest.commit_files(tmp_path, "index.faiss")
    assert (tmp_path / "manifest.json").read_bytes() == undisturbed


def test_a_missing_store_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dptr build-orp-bank"):
        Manifest.load(tmp_path, "orp")


def test_another_kind_is_a_user_error(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(UserError, match="prompts"):
        Manifest.load(tmp_path, "orp")


@pytest.mark.parametrize("content", [b"", b"{\n", b"\xff\xfe", b"[]", b"{}", b"[" * 100_000])
def test_a_damaged_manifest_is_named_with_what_to_do(content: bytes, tmp_path: Path) -> None:
    saved(tmp_path)
    path, problem = tmp_path / "manifest.json", "is damaged: its contents have changed"
    path.write_bytes(content)
    with pytest.raises(DamagedStore) as error:
        Manifest.load(tmp_path, "prompts")
    assert str(error.value).startswith(f"{path} {problem}. Restore it from a copy, or")
    assert [(found.file, found.problem) for found in verify(tmp_path)] == [("manifest.json", problem)]


def test_a_newer_format_is_not_guessed_at(tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, format_version=99)
    with pytest.raises(UserError, match="99"):
        Manifest.load(tmp_path, "prompts")


def test_cut_and_missing_files_are_found_at_opening(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "part-00000.arrow").write_bytes(b"sta")
    with pytest.raises(DamagedStore, match="3 bytes, not 10"):
        Manifest.load(tmp_path, "prompts")
    (tmp_path / "part-00000.arrow").unlink()
    with pytest.raises(DamagedStore, match="missing"):
        Manifest.load(tmp_path, "prompts")


def test_encoders_are_compared_by_weights_not_by_name() -> None:
    one = Manifest("prompts", {"encoder": "here", "weights": "a"})
    require_same_encoder(one, Manifest("orp", {"encoder": "there", "weights": "a"}))
    with pytest.raises(DamagedStore, match="weights differ"):
        require_same_encoder(one, Manifest("orp", {"encoder": "here", "weights": "b"}))


def test_fingerprint_follows_contents(tmp_path: Path) -> None:
    manifest = saved(tmp_path)
    before = manifest.fingerprint()
    manifest.shards.append(Shard("part-00001", 1, {"part-00001.arrow": FileRecord(1, "b")}))
    assert manifest.fingerprint() != before


def test_fingerprint_does_not_depend_on_what_the_encoder_is_called(tmp_path: Path) -> None:
    one, other = (Manifest("prompts", {"encoder": name, "weights": "a"}) for name in ("models/clip", "/models/clip"))
    assert one.fingerprint() == other.fingerprint()
    assert one.fingerprint() != Manifest("prompts", {"encoder": "models/clip", "weights": "b"}).fingerprint()


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("identity", "said"), [({"charset": 1}, "has a charset of another type"), ({}, "has no charset")]
)
def test_a_charset_that_is_none_is_damage(identity: dict[str, object], said: str, tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, identity=identity)
    with pytest.raises(DamagedStore, match=rf"manifest\.json {said}"):
        _ = PromptStore(tmp_path).charset


@pytest.mark.parametrize("name", ["../outside.arrow", "/etc/hostname", "..", "a/b", ""])
def test_a_file_outside_of_the_store_is_damage_and_never_read(name: str, tmp_path: Path) -> None:
    saved(tmp_path)
    edit(tmp_path, files={name: {"bytes": 0, "xxh3": ""}})
    with pytest.raises(DamagedStore, match=r"manifest\.json is damaged"):
        Manifest.read(tmp_path)
