"""Labelled crops to an image-feature store: its content, what is rejected, and that only settings matter."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageDraw

from dptr.cache.crops.dataset import preprocess
from dptr.cache.errors import DamagedStore, TooManyRejected, UserError
from dptr.cache.progress import set_quiet
from dptr.cache.sql import connect
from dptr.cache.stores.image_features import WordCropStore
from dptr.cache.stores.verify import verify
from dptr.cache.workspace import Workspace
from dptr.pipeline.clip import clip_files, image_shards
from dptr.pipeline.embed_crops import EmbedCropsSettings, embed_crops
from dptr.trainer.model.encoders import build_encoder
from dptr.trainer.model.encoders.clip import ClipEncoder, describe, weights_hash
from dptr.trainer.recipe import Recipe

SETTINGS = EmbedCropsSettings(copies=3, shard_rows=7, batch=4)
WORDS = ["red", "Oak", "tin", "sky", "map"]


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    set_quiet(True)


def draw_crops(folder: Path, words: list[str]) -> Path:
    folder.mkdir(parents=True)
    for number, word in enumerate(words):
        image = Image.new("RGB", (64 + number, 20), "white")
        ImageDraw.Draw(image).text((8, 4), word, fill="black")
        image.save(folder / f"{number}.png")
    lines = [f"{number}.png\t{word}\n" for number, word in enumerate(words)]
    (folder / "labels.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    return draw_crops(tmp_path / "crops", WORDS)


def hashes(store: Path) -> dict[str, str]:
    files = [path for path in store.iterdir() if path.suffix in (".arrow", ".parquet")]
    assert files
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def catalogue(store: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.concat_tables(
        [pq.read_table(path) for path in sorted(store.glob("part-*.parquet"))]
    ).to_pylist()
    return rows


def test_the_plain_view_is_what_the_encoder_of_a_recogniser_makes_of_the_crop(crops: Path, tmp_path: Path) -> None:
    summary = embed_crops([crops], tmp_path / "store", dataclasses.replace(SETTINGS, dtype="float32"))
    assert (summary.rows, summary.crops, summary.computed, summary.quarantined) == (15, 5, 15, 0)
    store = WordCropStore(tmp_path / "store")
    assert (len(store), store.copies, store.tokens_per_crop) == (5, 3, 36)
    assert [label for label, _, _ in store.crops()] == WORDS
    folder = clip_files.BUNDLED
    encoder = build_encoder(Recipe().replace("encoder", kind="clip:tiny", config=describe(folder)).encoder)
    assert isinstance(encoder, ClipEncoder)
    encoder.load(folder)
    assert weights_hash(encoder.state_dict()) == store.manifest.identity["image_weights"]
    pixels = [preprocess(Image.open(crops / f"{number}.png").convert("RGB"), *encoder.size) for number in range(5)]
    with torch.inference_mode():
        expected = encoder.eval()(torch.from_numpy(np.stack(pixels)).float() / 127.5 - 1).numpy()
    plain = store.tokens(np.arange(5), np.zeros(5, np.int64))
    np.testing.assert_allclose(plain, expected, atol=1e-4)
    other = store.tokens(np.arange(5), np.ones(5, np.int64))
    assert np.abs(other - plain).max(axis=(1, 2)).max() > 1e-2


def test_the_catalogue_tells_label_source_and_view(crops: Path, tmp_path: Path) -> None:
    embed_crops([crops], tmp_path / "image_features", SETTINGS)
    rows = catalogue(tmp_path / "image_features")
    assert [row["id"] for row in rows] == list(range(15))
    assert [row["view"] for row in rows] == [0, 1, 2] * 5
    assert (rows[3]["label"], rows[3]["key"]) == ("Oak", "1.png")
    assert rows[3]["image_sha256"] == hashlib.sha256((crops / "1.png").read_bytes()).hexdigest()
    assert str(crops) in rows[3]["source"]
    asked = connect(Workspace(tmp_path)).execute("select count(distinct view), count(*) from image_features").fetchall()
    assert asked == [(3, 15)]


def test_workers_a_kill_and_another_order_of_folders_change_no_view(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed_crops([crops], tmp_path / "one", SETTINGS)
    embed_crops([crops], tmp_path / "three", dataclasses.replace(SETTINGS, workers=3))
    assert hashes(tmp_path / "three") == hashes(tmp_path / "one")
    write = image_shards.write_shard

    def die_at_second(folder: Path, number: int, *rest: Any) -> object:
        if number == 1:
            raise KeyboardInterrupt
        return write(folder, number, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(image_shards, "write_shard", die_at_second)
        embed_crops([crops], tmp_path / "killed", SETTINGS)
    resumed = embed_crops([crops], tmp_path / "killed", SETTINGS)
    assert (resumed.rows, resumed.computed) == (15, 9)
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "one")
    more = draw_crops(tmp_path / "more", ["new"])
    grown = embed_crops([more, crops], tmp_path / "killed", SETTINGS)
    assert (grown.rows, grown.computed, grown.duplicates) == (18, 3, 0)
    assert [row["label"] for row in catalogue(tmp_path / "killed")[::3]] == [*WORDS, "new"]


def test_another_seed_or_strength_draws_other_views_of_the_same_plain_one(crops: Path, tmp_path: Path) -> None:
    stores = []
    changes: list[dict[str, Any]] = [{}, {"seed": 1}, {"augmentation": 0.0}]
    for number, changed in enumerate(changes):
        embed_crops([crops], tmp_path / str(number), dataclasses.replace(SETTINGS, **changed))
        stores.append(WordCropStore(tmp_path / str(number)))
    every = np.arange(5)
    plain, second = ([store.tokens(every, np.full(5, view)) for store in stores] for view in (0, 1))
    np.testing.assert_allclose(plain[0], plain[1], atol=2e-2)
    assert np.abs(second[0].astype(np.float32) - second[1]).max() > 0.1
    np.testing.assert_allclose(second[2], plain[2], atol=2e-2)


def test_rejected_crops_are_named_with_their_reasons(crops: Path, tmp_path: Path) -> None:
    (crops / "2.png").write_bytes((crops / "2.png").read_bytes()[:60])
    shutil.copy(crops / "0.png", crops / "again.png")
    (crops / "labels.tsv").open("a", encoding="utf-8").write("again.png\tred\n3.png\tdéjà\ngone.png\tsun\n")
    out = tmp_path / "image_features"
    summary = embed_crops([crops], out, SETTINGS)
    assert (summary.crops, summary.duplicates, summary.quarantined) == (4, 1, 3)
    connection = connect(Workspace(tmp_path))
    rejected = dict(connection.execute("select item, reason from rejected_crops").fetchall())
    assert [item.split()[0] for item in rejected] == ["3.png", "2.png", "gone.png"]
    assert [reason.split(":")[0] for reason in rejected.values()] == [
        "not in the charset", "unreadable image", "unreadable image",
    ]  # fmt: skip
    with pytest.raises(TooManyRejected):
        embed_crops([crops], tmp_path / "strict", dataclasses.replace(SETTINGS, max_bad=1))
    for number in range(5):
        (crops / f"{number}.png").write_bytes(b"")
    (crops / "again.png").unlink()
    with pytest.raises(UserError, match="none of"):
        embed_crops([crops], tmp_path / "none", SETTINGS)


def test_other_settings_need_another_folder_and_damage_is_found(crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    embed_crops([crops], out, SETTINGS)
    for changed in ({"seed": 1}, {"copies": 2}, {"augmentation": 0.5}, {"charset": "36"}, {"dtype": "int8"}):
        with pytest.raises(DamagedStore, match=f"other settings.*{next(iter(changed))}"):
            embed_crops([crops], out, dataclasses.replace(SETTINGS, **changed))
    assert verify(out) == []
    embeddings = out / "part-00001.arrow"
    data = bytearray(embeddings.read_bytes())
    data[len(data) // 2] ^= 1
    embeddings.write_bytes(data)
    assert [damage.file for damage in verify(out)] == ["part-00001.arrow"]
    with pytest.raises(UserError, match="--augmentation"):
        dataclasses.replace(SETTINGS, augmentation=-1.0)
