"""Labels, lengths, counts and hashes of all rows lie in one file, which is derived from the catalogues."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dptr.cache.errors import DamagedStore
from dptr.cache.file_names import PREFIX_FILE, ROWS_FILE
from dptr.cache.row_set import hashes_of
from dptr.cache.stores import prompt_rows
from dptr.cache.stores.manifest import FileRecord, Manifest
from dptr.cache.stores.prompt_rows import MADE_UP, write_rows
from dptr.cache.stores.prompts import CATALOGUE_SCHEMA, PromptStore
from dptr.cache.stores.shards import Embeddings, write_embeddings, write_shard
from dptr.cache.stores.verify import repairable, verify
from dptr.pipeline.repair import repair

LABELS = ["street", "Straße", "", "東京", "a", "bb", "ccc"]
IDENTITY = dict.fromkeys(
    ("encoder", "weights", "template", "dtype", "context", "charset", "tokenizer", "embeddings"), "made up"
)


def write_part(folder: Path, manifest: Manifest, labels: list[str], source: str = "x") -> None:
    first, count = manifest.rows, len(labels)
    rows = [
        {
            "id": first + row,
            "label": label,
            "label_length": len(label),
            "count": 10 * (first + row),
            "token_letters": [0, 0],
        }
        | {"n_tokens": 3, "token_ids": [1, 2, 3], "embeddings_of": first + row, "prompt": label, "source": source}
        for row, label in enumerate(labels)
    ]
    embeddings = Embeddings(np.ones((count, 4), np.float32), np.ones(count, np.int64), np.ones((count, 4), np.float32))
    table = pa.Table.from_pylist(rows, CATALOGUE_SCHEMA)
    manifest.shards.append(write_shard(folder, len(manifest.shards), table, embeddings, "float16", {}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store as it was before it had a file of its rows."""
    manifest = Manifest("prompts", dict(IDENTITY))
    for part in (LABELS[:3], LABELS[3:]):
        write_part(tmp_path, manifest, part)
    prefix = np.ones((2, 4), np.float32)
    write_embeddings(tmp_path / PREFIX_FILE, Embeddings(prefix, np.array([2]), prefix[:1]), "float16")
    manifest.files[PREFIX_FILE] = FileRecord.of(tmp_path / PREFIX_FILE)
    manifest.save(tmp_path)
    return tmp_path


@pytest.fixture(params=[1, 2, 20])
def block_bits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_rows, "_BLOCK_BITS", request.param)


@pytest.mark.usefixtures("block_bits")
def test_a_store_of_an_earlier_version_gets_its_rows_when_they_are_first_asked_for(folder: Path) -> None:
    store = PromptStore(folder)
    order = np.array([6, 0, 3, 1, 2])
    assert store.labels_of(order) == [LABELS[row] for row in order]
    assert store.label_lengths_of(order).tolist() == [len(LABELS[row]) for row in order]
    assert store.counts_of(order[:, None]).tolist() == [[10 * row] for row in order]
    assert store.longest_label == max(map(len, LABELS))
    assert [letters.tolist() for letters in store.rows.token_letters_of(order[:2])] == [[0, 0]] * 2
    assert np.concatenate(list(store.rows.column("label_hash"))).tolist() == hashes_of(pa.array(LABELS)).tolist()
    assert ROWS_FILE in Manifest.read(folder).files
    assert not verify(folder)
    before = (folder / ROWS_FILE).stat().st_mtime_ns
    PromptStore(folder).labels_of(order)
    assert (folder / ROWS_FILE).stat().st_mtime_ns == before, "written once"


@pytest.mark.usefixtures("block_bits")
def test_a_store_marks_its_rows_that_were_made_up_and_makes_the_file_again_when_it_grows(folder: Path) -> None:
    assert not np.concatenate(list(PromptStore(folder).rows.column("made_up"))).any()
    manifest = Manifest.load(folder, "prompts")
    for source, labels in ((MADE_UP, ["qa", "qb"]), (MADE_UP, ["qc"]), ("/words.txt", ["north", "south"])):
        write_part(folder, manifest, labels, source)
    manifest.save(folder)
    store = PromptStore(folder)
    assert np.flatnonzero(np.concatenate(list(store.rows.column("made_up")))).tolist() == [7, 8, 9]
    assert pickle.loads(pickle.dumps(store)).labels_of(np.array([9, 11])) == ["qc", "south"]
    assert not verify(folder)


def test_case_does_not_change_a_hash() -> None:
    assert hashes_of(pa.array(["Street", "ÉCOLE"])).tolist() == hashes_of(pa.array(["street", "école"])).tolist()


@pytest.mark.parametrize("change", ["flip", "cut", "remove"])
def test_damaged_rows_are_found_and_repaired(folder: Path, change: str) -> None:
    path = folder / ROWS_FILE
    write_rows(folder, Manifest.load(folder, "prompts"))
    whole = path.read_bytes()
    if change == "remove":
        path.unlink()
    else:
        path.write_bytes(whole[:-9] if change == "cut" else whole[:400] + bytes([whole[400] ^ 1]) + whole[401:])
    if change == "flip":
        with pytest.raises(DamagedStore, match=ROWS_FILE):
            _ = PromptStore(folder).rows
    damages = verify(folder)
    assert [damage.file for damage in damages] == [ROWS_FILE]
    assert not repair(folder, repairable(damages)[folder])
    assert path.read_bytes() == whole
    assert not verify(folder)


@pytest.mark.parametrize("content", [b"", b"ARROW1 and no more", bytes(4000)])
def test_rows_that_are_no_arrow_file_are_damaged_without_a_hash_check(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ROWS_FILE).write_bytes(content)
    with pytest.raises(DamagedStore, match="cannot be read"):
        prompt_rows.PromptRows(tmp_path / ROWS_FILE)
