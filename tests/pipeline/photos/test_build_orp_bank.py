from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dptr.cache.errors import DamagedStore, TooManyRejected, UserError
from dptr.cache.file_names import INDEX_FILE, QUARANTINE_FILE
from dptr.cache.progress import set_quiet
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.verify import verify
from dptr.pipeline.clip import image_shards
from dptr.pipeline.clip.loading import ImageEncoder, load_clip
from dptr.pipeline.photos import build_orp_bank as module
from dptr.pipeline.photos.build_orp_bank import OrpBankSettings, build_orp_bank

SETTINGS = OrpBankSettings(crops_per_image=2, shard_rows=6, batch=4)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    set_quiet(True)


def hashes(bank: Path) -> dict[str, str]:
    names = [path.name for path in bank.iterdir() if path.suffix in (".arrow", ".faiss", ".parquet")]
    assert names
    return {name: hashlib.sha256((bank / name).read_bytes()).hexdigest() for name in names}


def catalogue(bank: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(bank.glob("part-*.parquet"))])


def test_embeddings_are_those_of_the_crops(photos: Path, tmp_path: Path) -> None:
    summary = build_orp_bank([photos], tmp_path / "bank", dataclasses.replace(SETTINGS, dtype="float32"))
    assert (summary.rows, summary.photos, summary.computed, summary.quarantined) == (16, 8, 16, 0)
    bank = OrpBank(tmp_path / "bank")
    row = catalogue(tmp_path / "bank").to_pylist()[9]
    assert (row["id"], row["image"]) == (9, str(photos / "4.png"))
    assert row["image_sha256"] == hashlib.sha256((photos / "4.png").read_bytes()).hexdigest()
    picture = Image.open(photos / "4.png").crop((row["x"], row["y"], row["x"] + row["width"], row["y"] + row["height"]))
    encoder = ImageEncoder(load_clip("tiny"))
    tokens, pooled = encoder.encode(encoder.preprocess(picture)[None])
    everything = np.arange(bank.tokens_per_crop)[None]
    assert bank.tokens_per_crop == encoder.tokens
    np.testing.assert_allclose(bank.tokens(np.array([9]), everything), tokens, atol=1e-5)
    np.testing.assert_allclose(row["pooled"], pooled[0], atol=1e-5)
    assert summary.index["kind"] == "Flat"
    assert summary.index["rows"] == 16


def test_some_tokens_of_each_crop(photos: Path, tmp_path: Path) -> None:
    plain = dataclasses.replace(SETTINGS, dtype="float32")
    build_orp_bank([photos], tmp_path / "all", plain)
    build_orp_bank([photos], tmp_path / "some", dataclasses.replace(plain, tokens_per_crop=5))
    whole, some = OrpBank(tmp_path / "all"), OrpBank(tmp_path / "some")
    assert some.tokens_per_crop == 5
    choices = set()
    for crop in range(len(whole)):
        every = whole.tokens(np.array([crop]), np.arange(whole.tokens_per_crop)[None])[0]
        kept = some.tokens(np.array([crop]), np.arange(5)[None])[0]
        positions = [int(np.flatnonzero((every == token).all(1))[0]) for token in kept]
        assert positions == sorted(set(positions))
        choices.add(tuple(positions))
    assert len(choices) > len(whole) // 2
    with pytest.raises(UserError, match="tokens per crop"):
        build_orp_bank([photos], tmp_path / "more", dataclasses.replace(plain, tokens_per_crop=10_000))


def test_workers_and_a_kill_change_no_byte(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_orp_bank([photos], tmp_path / "one", SETTINGS)
    build_orp_bank([photos], tmp_path / "four", dataclasses.replace(SETTINGS, workers=4))
    assert hashes(tmp_path / "four") == hashes(tmp_path / "one")

    write = image_shards.write_shard

    def die_at_second(folder: Path, number: int, *rest: Any) -> object:
        if number == 1:
            raise KeyboardInterrupt
        return write(folder, number, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(image_shards, "write_shard", die_at_second)
        with pytest.raises(KeyboardInterrupt):
            build_orp_bank([photos], tmp_path / "killed", SETTINGS)
    (tmp_path / "killed" / "part-00001.arrow").write_bytes(b"half a shard")
    resumed = build_orp_bank([photos], tmp_path / "killed", SETTINGS)
    assert (resumed.rows, resumed.computed, resumed.duplicates) == (16, 10, 0)
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "one")


def test_a_kill_before_the_index_leaves_a_bank_that_goes_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw_photo: Any
) -> None:
    out = tmp_path / "bank"
    build_orp_bank([photos], out, SETTINGS)
    draw_photo(photos / "9.png", 9)

    def die(bank: OrpBank) -> None:
        (bank.folder / INDEX_FILE).write_bytes(b"half an index")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module.faiss_index, "write_index", die)
        with pytest.raises(KeyboardInterrupt):
            build_orp_bank([photos], out, SETTINGS)
    summary = build_orp_bank([photos], out, SETTINGS)
    assert (summary.rows, summary.computed, summary.index["rows"]) == (18, 0, 18)


def test_new_photos_are_added_and_old_ones_left_alone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw_photo: Any
) -> None:
    out = tmp_path / "bank"
    build_orp_bank([photos], out, SETTINGS)
    before = hashes(out)
    draw_photo(photos / "0a.png", 77)
    shutil.copy(photos / "3.png", photos / "3 again.png")
    encoded: list[int] = []
    encode = ImageEncoder.encode
    monkeypatch.setattr(
        ImageEncoder, "encode", lambda self, pixels: encoded.append(len(pixels)) or encode(self, pixels)
    )
    summary = build_orp_bank([photos], out, SETTINGS)
    assert (summary.rows, summary.computed, summary.photos, sum(encoded)) == (18, 2, 9, 2)
    after = hashes(out)
    assert {name: after[name] for name in before if name.startswith("part")} == {
        name: before[name] for name in before if name.startswith("part")
    }
    assert after[INDEX_FILE] != before[INDEX_FILE]
    again = build_orp_bank([photos], out, SETTINGS)
    assert (again.computed, sum(encoded)) == (0, 2)
    assert hashes(out) == after


def test_the_same_picture_counts_once(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "3.png", photos / "copy.png")
    summary = build_orp_bank([photos, photos / "0.png"], tmp_path / "bank", SETTINGS)
    assert (summary.photos, summary.duplicates, summary.quarantined) == (8, 2, 0)


def test_a_pile_with_everything_wrong(photos: Path, tmp_path: Path, rejected: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photos / "whole.jpg")
    data = (photos / "whole.jpg").read_bytes()
    (photos / "truncated.jpg").write_bytes(data[: len(data) // 2])
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.png").write_text("no picture")
    Image.new("RGB", (1, 1)).save(photos / "dot.png")
    Image.new("RGB", (20_000, 40), "green").save(photos / "panorama.png")
    Image.new("1", (11_000, 11_000)).save(photos / "bomb.png")
    Image.new("CMYK", (64, 64), (0, 90, 0, 0)).save(photos / "cmyk.jpg")
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(photos / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save(photos / "deep.png")
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    (photos / "loop").symlink_to(photos)
    out = tmp_path / "bank"
    summary = build_orp_bank([photos], out, dataclasses.replace(SETTINGS, workers=2))
    reasons = rejected(out)
    assert sorted(reasons) == sorted(["truncated.jpg", "empty.png", "text.png", "dot.png", "bomb.png", "gone.png"])
    assert all(reasons.values())
    assert summary.photos == 13
    assert summary.quarantined == 6


def test_an_unreadable_file_is_rejected(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rejected: Any
) -> None:
    (photos / "0.png").chmod(0)
    if os.access(photos / "0.png", os.R_OK):
        # The superuser may read everything; then the rejection is made up.
        read = Path.read_bytes

        def deny(path: Path) -> bytes:
            if path.name == "0.png":
                raise PermissionError(13, "Permission denied", str(path))
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", deny)
    summary = build_orp_bank([photos], tmp_path / "bank", SETTINGS)
    assert (summary.photos, rejected(tmp_path / "bank")) == (7, {"0.png": "cannot be read: Permission denied"})


def test_too_many_rejected(photos: Path, tmp_path: Path) -> None:
    (photos / "9.png").write_text("no picture")
    with pytest.raises(TooManyRejected):
        build_orp_bank([photos], tmp_path / "bank", dataclasses.replace(SETTINGS, max_bad=0))
    assert build_orp_bank([photos], tmp_path / "bank", SETTINGS).rows == 16


def test_photos_near_excluded_images_are_kept_out(photos: Path, tmp_path: Path, rejected: Any) -> None:
    (tmp_path / "benchmark").mkdir()
    Image.open(photos / "5.png").resize((120, 90)).save(tmp_path / "benchmark" / "five.jpg", quality=90)
    strict = dataclasses.replace(SETTINGS, exclude_near=(tmp_path / "benchmark",), exclude_threshold=0.995)
    out = tmp_path / "bank"
    summary = build_orp_bank([photos], out, strict)
    assert summary.photos == 7
    ((name, reason),) = rejected(out).items()
    assert name == "5.png"
    assert "five.jpg" in reason
    with pytest.raises(DamagedStore, match="kept_out"):
        build_orp_bank([photos], out, SETTINGS)
    (tmp_path / "benchmark" / "bad.png").write_text("no picture")
    with pytest.raises(UserError, match=r"bad\.png"):
        build_orp_bank([photos], tmp_path / "other", strict)


def test_other_settings_need_another_folder(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "bank"
    build_orp_bank([photos], out, SETTINGS)
    before = hashes(out)
    for changed in ({"seed": 1}, {"crops_per_image": 3}, {"dtype": "int8"}, {"tokens_per_crop": 4}):
        with pytest.raises(DamagedStore, match="other settings"):
            build_orp_bank([photos], out, dataclasses.replace(SETTINGS, **changed))
    assert hashes(out) == before


def test_a_bank_of_whole_photos_has_the_middle_of_each_once(photos: Path, tmp_path: Path) -> None:
    whole = dataclasses.replace(SETTINGS, crops_per_image=1, kind="whole")
    assert build_orp_bank([photos], tmp_path / "bank", whole).rows == 8
    bank = OrpBank(tmp_path / "bank")
    assert bank.manifest.identity["crops"]["kind"] == "whole"
    encoder = ImageEncoder(load_clip("tiny"))
    row = pq.read_table(bank.manifest.catalogues(bank.folder)[0]).to_pylist()[0]
    with Image.open(row["image"]) as photo:
        pooled = encoder.encode(encoder.preprocess(photo.crop((12, 0, 84, 72)))[None])[1][0]
    assert np.allclose(pooled, row["pooled"], atol=1e-4)
    with pytest.raises(DamagedStore, match="other settings"):
        build_orp_bank([photos], tmp_path / "bank", dataclasses.replace(SETTINGS, crops_per_image=1))


def test_no_photo_that_can_be_used(tmp_path: Path, rejected: Any) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(UserError, match=r"none of 1 photos can be used: .*bad\.png, not a picture"):
        build_orp_bank([tmp_path / "bad.png"], tmp_path / "bank", SETTINGS)
    assert rejected(tmp_path / "bank") == {"bad.png": "not a picture"}


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_an_impossible_seed_is_rejected_before_it_makes_photos_look_bad(seed: int) -> None:
    with pytest.raises(UserError, match=f"seed {seed} is impossible"):
        dataclasses.replace(SETTINGS, seed=seed)


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


def test_a_damaged_quarantine_is_found_and_written_again(photos: Path, tmp_path: Path, rejected: Any) -> None:
    bank = tmp_path / "bank"
    (photos / "bad.png").write_bytes(b"no picture")
    before = build_orp_bank([photos], bank, SETTINGS)
    path = bank / QUARANTINE_FILE
    whole, table = path.read_bytes(), pq.read_table(path)
    damages = [whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :] for place in (2, 40, len(whole) - 20)]
    # Where a flipped bit falls depends on lengths and compression: some leave a table that reads well and is wrong.
    wrong = io.BytesIO()
    pq.write_table(table.set_column(0, "source", pa.array(["elsewhere"])), wrong)
    for damaged in (*damages, wrong.getvalue()):
        path.write_bytes(damaged)
        assert [found.file for found in verify(bank)] == [QUARANTINE_FILE]
        assert len(OrpBank(bank)) == before.rows
        assert build_orp_bank([photos], bank, SETTINGS).rows == before.rows
        assert verify(bank) == []
        assert set(rejected(bank)) == {"bad.png"}


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
