"""Damage of any kind, in any file of a store, a run or a model, is found and named."""

from __future__ import annotations

import errno
import hashlib
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from filelock import FileLock

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import MANIFEST_FILE, PREFIX_FILE, QUARANTINE_FILE, RECIPE_FILE, RUN_FILE
from dptr.cache.progress import set_quiet
from dptr.cache.rejections import Quarantine
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.manifest import FileRecord, Manifest
from dptr.cache.stores.prompts import CATALOGUE_SCHEMA
from dptr.cache.stores.shards import Embeddings, write_embeddings, write_shard
from dptr.cache.stores.verify import all_in, verify
from dptr.cache.workspace import Workspace
from dptr.cli import run_command

IDENTITY = {
    "encoder": "tiny",
    "weights": "w",
    "template": "{label}",
    "dtype": "float16",
    "context": "content",
    "charset": "abc",
}
LENGTHS = np.array([2, 3, 1])


def catalogue(first: int) -> pa.Table:
    rows = [
        {"id": first + row, "label": "abc"[: length + 1], "n_tokens": int(length) + 2}
        for row, length in enumerate(LENGTHS)
    ]
    return pa.Table.from_pylist(rows, CATALOGUE_SCHEMA)


def embeddings(lengths: np.ndarray, dim: int = 4) -> Embeddings:
    return Embeddings(
        np.random.default_rng(0).random((lengths.sum(), dim), np.float32), lengths, np.ones((len(lengths), 2), "f4")
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    manifest = Manifest("prompts", dict(IDENTITY))
    for number in range(2):
        manifest.shards.append(write_shard(tmp_path, number, catalogue(3 * number), embeddings(LENGTHS), "float16", {}))
    write_embeddings(tmp_path / PREFIX_FILE, embeddings(np.array([2])), "float32")
    manifest.files[PREFIX_FILE] = FileRecord.of(tmp_path / PREFIX_FILE)
    manifest.save(tmp_path)
    return tmp_path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    best = tmp_path / "run" / "checkpoints" / "best"
    best.mkdir(parents=True)
    (best / "model.safetensors").write_bytes(b"weights")
    checksummed.write_json(
        best / "state.json", {"files": {"model.safetensors": hashlib.sha256(b"weights").hexdigest()}}
    )
    checksummed.write_json(tmp_path / "run" / RUN_FILE, {"kind": "pretrain", "charset": "abc"})
    checksummed.write_text(tmp_path / "run" / RECIPE_FILE, f"[noise]\nratio = 0.1\n# {checksummed.WITHOUT_CHECKSUM}\n")
    return tmp_path / "run"


def found(folder: Path) -> list[tuple[str, str]]:
    return [(damage.file, damage.problem) for damage in verify(folder)]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    set_quiet(True)


def flip(path: Path, byte: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.write_bytes(data)


def flip_somewhere(path: Path, times: int) -> list[list[str]]:
    """Flip one random bit, see what is found, put it back; so many times."""
    generator, whole, seen = random.Random(path.name), path.read_bytes(), []
    folder = next(
        parent for parent in path.parents if (parent / MANIFEST_FILE).exists() or (parent / RUN_FILE).exists()
    )
    for _ in range(times):
        flip(path, generator.randrange(len(whole)), generator.randrange(8))
        seen.append([str(damage.path) for damage in verify(folder)])
        path.write_bytes(whole)
    return seen


def test_a_whole_store_has_no_damage(store: Path) -> None:
    (store / "not committed.arrow").write_bytes(b"left by a killed run")
    assert verify(store) == []


@pytest.mark.parametrize("name", ["part-00000.arrow", "part-00001.parquet", PREFIX_FILE, MANIFEST_FILE])
def test_one_flipped_bit_anywhere_is_found(store: Path, name: str) -> None:
    assert flip_somewhere(store / name, 60) == [[str(store / name)]] * 60


@pytest.mark.parametrize(
    "name", [RUN_FILE, RECIPE_FILE, "checkpoints/best/state.json", "checkpoints/best/model.safetensors"]
)
def test_one_flipped_bit_anywhere_in_a_run_is_found(run: Path, name: str) -> None:
    assert verify(run) == []
    assert flip_somewhere(run / name, 60) == [[str(run / name)]] * 60


def test_every_damage_is_named_not_only_the_first(store: Path) -> None:
    (store / "part-00000.parquet").write_bytes(b"short")
    (store / PREFIX_FILE).unlink()
    names = [(file, problem[:11]) for file, problem in found(store)]
    assert names == [(PREFIX_FILE, "is missing"), ("part-00000.parquet", "has 5 bytes")]


def test_a_manifest_that_cannot_be_read(store: Path) -> None:
    for contents in ("", "{", "[]", '{"files": {}}', '{"files": {"a": 1}, "shards": []}', "[" * 100_000):
        (store / MANIFEST_FILE).write_text(contents)
        (damage,) = verify(store)
        assert damage.file == MANIFEST_FILE


def test_a_missing_manifest_is_damage(store: Path) -> None:
    (store / MANIFEST_FILE).unlink()
    assert found(store) == [(MANIFEST_FILE, "is missing")]


@pytest.mark.parametrize("name", [RUN_FILE, RECIPE_FILE, "checkpoints/best/state.json"])
def test_a_missing_file_of_a_run_is_damage(run: Path, name: str) -> None:
    (run / name).unlink()
    assert found(run) == [(name, "is missing")]


def test_what_is_nothing_of_ours(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a store, a run"):
        verify(tmp_path)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match="neither a store"):
        verify(tmp_path / "photo.jpg")


def test_a_newer_store_or_run_is_rejected_in_one_line(store: Path, run: Path) -> None:
    for folder, name in ((store, MANIFEST_FILE), (run, RUN_FILE)):
        value = checksummed.read_json(folder / name)
        checksummed.write_json(folder / name, value | {"format_version": 99})
        with pytest.raises(UserError, match="format version 99"):
            verify(folder)


def test_what_is_not_checksummed_though_its_version_says_so_is_damaged(tmp_path: Path) -> None:
    checksummed.write_json(tmp_path / "a.json", {"x": 1})
    (tmp_path / "a.json").write_text('{"format_version": 2, "x": 1}')
    with pytest.raises(DamagedStore, match="damaged"):
        checksummed.read_json(tmp_path / "a.json")


def test_a_flip_in_what_a_model_read_is_found(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    folder = workspace.models / "bundled"
    with Quarantine(folder / QUARANTINE_FILE) as quarantine:
        quarantine.reject("crops", None, "1", "empty label")
    (folder / "predictions").mkdir()
    shutil.copy(folder / QUARANTINE_FILE, folder / "predictions" / "ab.parquet")
    assert all_in(workspace) == [folder]
    assert verify(folder) == []
    for name in ("predictions/ab.parquet", QUARANTINE_FILE):
        whole, generator = (folder / name).read_bytes(), random.Random(name)
        for _ in range(40):
            flip(folder / name, generator.randrange(len(whole)), generator.randrange(8))
            assert found(folder) == [(name, "is damaged: its contents have changed")]
            (folder / name).write_bytes(whole)


def test_repair_of_a_store_that_cannot_be_written_still_names_the_damage(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "part-00001.arrow").unlink()

    def read_only(*_: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", read_only)
    assert run_command(["verify", "--repair", str(store), "--quiet"]) == 3
    said = capsys.readouterr().err
    assert f"{store / 'part-00001.arrow'} is missing" in said
    assert "Read-only file system" in said
