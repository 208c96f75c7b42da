"""Labels, lengths, counts and hashes of all rows lie in one file, which is derived from the catalogues."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import PREFIX_FILE, ROWS_FILE
from dptr.cache.stores import prompt_rows
from dptr.cache.stores.manifest import FileRecord, Manifest
from dptr.cache.stores.prompt_rows import MADE_UP, PromptRows, within, write_rows
from dptr.cache.stores.prompts import CATALOGUE_SCHEMA, PromptStore
from dptr.cache.stores.shards import Embeddings, write_embeddings, write_shard
from dptr.cache.stores.verify import repairable, verify
from dptr.cache.validation import hashes_of
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
def test_a_store_knows_which_of_its_rows_were_made_up(folder: Path) -> None:
    assert PromptStore(folder).made_up == []
    manifest = Manifest.load(folder, "prompts")
    for source, labels in ((MADE_UP, ["qa", "qb"]), (MADE_UP, ["qc"]), ("/words.txt", ["north", "south"])):
        write_part(folder, manifest, labels, source)
    manifest.save(folder)
    store = PromptStore(folder)
    assert [row for start, stop in store.made_up for row in range(start, stop)] == [7, 8, 9]
    assert np.concatenate([within(store.made_up, 0, 8), within(store.made_up, 8, 4)]).tolist() == [
        row in (7, 8, 9) for row in range(12)
    ]
    assert PromptRows(folder / ROWS_FILE).made_up == store.made_up


def test_case_does_not_change_a_hash() -> None:
    assert hashes_of(pa.array(["Street", "ÉCOLE"])).tolist() == hashes_of(pa.array(["street", "école"])).tolist()


def test_rows_of_fewer_shards_are_made_again(folder: Path) -> None:
    assert len(PromptStore(folder).rows) == len(LABELS)
    manifest = Manifest.load(folder, "prompts")
    write_part(folder, manifest, ["new"])
    manifest.save(folder)
    assert PromptStore(folder).labels_of(np.array([len(LABELS)])) == ["new"]
    assert not verify(folder)


@pytest.mark.parametrize("change", ["flip", "cut", "remove"])
def test_damaged_rows_are_found_and_repaired(folder: Path, change: str) -> None:
    path = folder / ROWS_FILE
    write_rows(folder, Manifest.load(folder, "prompts"))
    whole = path.read_bytes()
    if change == "remove":
        path.unlink()
    else:
        path.write_bytes(whole[:-9] if change == "cut" else whole[:400] + bytes([whole[400] ^ 1]) + whole[401:])
    damages = verify(folder)
    assert [damage.file for damage in damages] == [ROWS_FILE]
    assert not repair(folder, repairable(damages)[folder])
    assert path.read_bytes() == whole
    assert not verify(folder)


def test_a_store_that_another_process_writes_is_read_without_touching_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject(target: Path) -> None:
        raise UserError(f"{target} is being written by another process", "Wait")

    monkeypatch.setattr(prompt_rows, "locked", reject)
    files = sorted(os.listdir(folder))
    store = PromptStore(folder)
    assert pickle.loads(pickle.dumps(store)).labels_of(np.arange(7)) == store.labels_of(np.arange(7)) == LABELS
    assert sorted(os.listdir(folder)) == files


def with_offsets_that_lead_out(path: Path, column: pa.Array) -> None:
    """Let the second row of a column of text or lists begin far outside of it, as a flipped bit may."""
    offsets = column.buffers()[1].to_pybytes()[: 4 * (len(column) + 1)]
    data = path.read_bytes()
    at = data.index(offsets) + 4
    path.write_bytes(data[:at] + (1 << 30).to_bytes(4, "little") + data[at + 4 :])


@pytest.mark.parametrize(("name", "read"), [("label", "labels_of"), ("token_letters", "token_letters_of")])
def test_offsets_that_lead_out_of_the_file_are_damage_and_end_no_process(folder: Path, name: str, read: str) -> None:
    # Not through the store, which would begin to compare the file with its hash.
    write_rows(folder, Manifest.load(folder, "prompts"))
    rows = prompt_rows.PromptRows(folder / ROWS_FILE)
    with pa.memory_map(str(folder / ROWS_FILE)) as file:
        column = pa.ipc.open_file(file.read_buffer()).get_batch(0).column(name)
    whole = getattr(rows, read)(np.arange(len(LABELS)))
    with_offsets_that_lead_out(folder / ROWS_FILE, column)
    damaged = prompt_rows.PromptRows(folder / ROWS_FILE)
    with pytest.raises(DamagedStore, match=ROWS_FILE):
        getattr(damaged, read)(np.arange(len(LABELS)))
    assert [list(value) for value in whole[3:]] == [list(v) for v in getattr(damaged, read)(np.arange(3, len(LABELS)))]
    if name == "label":
        with pytest.raises(DamagedStore, match=ROWS_FILE):
            list(damaged.labels())


def test_a_store_that_says_nothing_of_its_charset_is_damage(folder: Path) -> None:
    manifest = Manifest.load(folder, "prompts")
    del manifest.identity["charset"]
    manifest.save(folder)
    with pytest.raises(DamagedStore, match="has no charset"):
        _ = PromptStore(folder).charset
