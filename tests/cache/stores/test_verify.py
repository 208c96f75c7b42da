from __future__ import annotations

from pathlib import Path

import pytest

from dptr.cache.errors import UserError
from dptr.cache.file_names import MANIFEST_FILE
from dptr.cache.stores.manifest import FileRecord, Manifest, Shard
from dptr.cache.stores.verify import verify


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for name in ("part-00000.arrow", "part-00000.parquet", "prefix.arrow"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    shard_files = {name: FileRecord.of(tmp_path / name) for name in ("part-00000.arrow", "part-00000.parquet")}
    manifest = Manifest("prompts", {"weights": "w"}, [Shard("part-00000", 3, shard_files)])
    manifest.files["prefix.arrow"] = FileRecord.of(tmp_path / "prefix.arrow")
    manifest.save(tmp_path)
    return tmp_path


def found(store: Path) -> list[tuple[str, str | None, str]]:
    return [(damage.file, damage.shard, damage.problem) for damage in verify(store)]


def test_a_whole_store_has_no_damage(store: Path) -> None:
    (store / "not committed.arrow").write_bytes(b"left by a killed run")
    assert verify(store) == []


def test_one_flipped_bit_is_found(store: Path) -> None:
    data = bytearray((store / "part-00000.arrow").read_bytes())
    data[700] ^= 1
    (store / "part-00000.arrow").write_bytes(data)
    assert found(store) == [("part-00000.arrow", "part-00000", "its contents have changed")]


def test_every_damage_is_named_not_only_the_first(store: Path) -> None:
    (store / "part-00000.parquet").write_bytes(b"short")
    (store / "prefix.arrow").unlink()
    assert found(store) == [
        ("prefix.arrow", None, "is missing"),
        ("part-00000.parquet", "part-00000", "has 5 bytes, not 1800"),
    ]


def test_a_manifest_that_cannot_be_read(store: Path) -> None:
    for contents in ("{", "[]", '{"files": {}}', '{"files": {"a": 1}, "shards": []}'):
        (store / MANIFEST_FILE).write_text(contents)
        (damage,) = verify(store)
        assert damage.file == MANIFEST_FILE


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no store"):
        verify(tmp_path)
