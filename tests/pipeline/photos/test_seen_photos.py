"""What earlier runs rejected is kept, and damage to it never hides a photo."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dptr.cache import pictures
from dptr.cache.errors import TooManyRejected
from dptr.cache.file_names import PHOTOS_FILE, QUARANTINE_FILE
from dptr.cache.progress import set_quiet
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.verify import verify
from dptr.pipeline.photos.build_orp_bank import OrpBankSettings, build_orp_bank

SETTINGS = OrpBankSettings(crops_per_image=2, shard_rows=6, batch=4)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    set_quiet(True)


def test_rejected_photos_are_tried_again_only_when_asked_or_changed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw_photo: Any, rejected: Any
) -> None:
    out = tmp_path / "bank"
    for name in ("bad.png", "worse.png"):
        (photos / name).write_text("no picture")
    build_orp_bank([photos], out, SETTINGS)

    decoded: list[bytes] = []
    original: Callable[[bytes], Image.Image] = pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda data: decoded.append(data) or original(data))
    build_orp_bank([photos], out, SETTINGS)
    assert not decoded
    assert sorted(rejected(out)) == ["bad.png", "worse.png"]
    draw_photo(photos / "bad.png", 50)
    assert build_orp_bank([photos], out, SETTINGS).computed == 2
    assert len(decoded) == 1
    retried = dataclasses.replace(SETTINGS, retry_quarantined=True)
    assert build_orp_bank([photos], out, retried).quarantined == 1
    assert len(decoded) == 2


def test_a_second_folder_keeps_what_the_first_one_rejected(
    photos: Path, tmp_path: Path, draw_photo: Any, rejected: Any
) -> None:
    bank = tmp_path / "bank"
    (photos / "bad.png").write_bytes(b"no picture")
    build_orp_bank([photos], bank, SETTINGS)
    draw_photo(tmp_path / "more" / "good.png", 99)
    (tmp_path / "more" / "worse.png").write_bytes(b"no picture either")
    build_orp_bank([tmp_path / "more"], bank, SETTINGS)
    assert set(rejected(bank)) == {"bad.png", "worse.png"}
    draw_photo(photos / "bad.png", 100)
    build_orp_bank([photos], bank, SETTINGS)
    assert set(rejected(bank)) == {"worse.png"}


@pytest.mark.parametrize("name", [PHOTOS_FILE, QUARANTINE_FILE])
def test_a_flipped_bit_in_what_tells_of_past_runs_is_found_and_repaired(
    photos: Path, tmp_path: Path, name: str, rejected: Any
) -> None:
    bank = tmp_path / "bank"
    (photos / "bad.png").write_bytes(b"no picture")
    before = build_orp_bank([photos], bank, SETTINGS)
    path = bank / name
    whole = path.read_bytes()
    for place in (2, 40, len(whole) - 20):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert [found.file for found in verify(bank)] == [name]
        assert len(OrpBank(bank)) == before.rows
        assert build_orp_bank([photos], bank, SETTINGS).rows == before.rows
        assert verify(bank) == []
        assert set(rejected(bank)) == {"bad.png"}


def test_what_is_damaged_but_still_readable_tells_of_nothing(photos: Path, tmp_path: Path, rejected: Any) -> None:
    """Where a flipped bit falls depends on lengths and compression: some leave a table that reads well and is wrong."""
    bank = tmp_path / "bank"
    (photos / "bad.png").write_bytes(b"no picture")
    rows = build_orp_bank([photos], bank, SETTINGS).rows
    for name, changed in ((QUARANTINE_FILE, "source"), (PHOTOS_FILE, "reason")):
        table = pq.read_table(bank / name)
        wrong = pa.array([str(value).replace("png", "npg") for value in table[changed].to_pylist()])
        pq.write_table(table.set_column(table.column_names.index(changed), changed, wrong), bank / name)
        assert build_orp_bank([photos], bank, SETTINGS).rows == rows
        assert verify(bank) == []
        assert set(rejected(bank)) == {"bad.png"}
        assert "npg" not in str(pq.read_table(bank / PHOTOS_FILE).to_pylist())


def test_a_run_that_is_cut_short_leaves_what_it_tells_under_the_manifests_hashes(
    photos: Path, tmp_path: Path, rejected: Any
) -> None:
    bank = tmp_path / "bank"
    build_orp_bank([photos], bank, SETTINGS)
    for number in range(3):
        (photos / f"bad{number}.png").write_bytes(b"no picture")
    with pytest.raises(TooManyRejected):
        build_orp_bank([photos], bank, dataclasses.replace(SETTINGS, max_bad=1))
    assert set(rejected(bank)) == {"bad0.png", "bad1.png"}
    (bank / QUARANTINE_FILE).write_bytes((bank / QUARANTINE_FILE).read_bytes()[:-9])
    assert [found.file for found in verify(bank)] == [QUARANTINE_FILE]
