"""``dptr verify --repair``: what is damaged is computed again from its inputs, to the same bits, and nothing else."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dptr.cache.stores.verify import verify
from dptr.cli import run_command

WORDS = [a + b + c for a in "bdfgklm" for b in "aei" for c in ("n", "st", "rk")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prompt store of three shards, a bank of two and an image-feature store, with their inputs."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "words.txt").write_text("\n".join(WORDS))
    generator = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(4):
        pixels = generator.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((160, 120)).save(folder / "photos" / f"{number}.png")
    (folder / "crops").mkdir()
    for number in range(4):
        Image.fromarray(generator.integers(0, 256, (32, 96, 3), np.uint8)).save(folder / "crops" / f"{number}.png")
    (folder / "crops" / "labels.tsv").write_text("".join(f"{number}.png\t{WORDS[number]}\n" for number in range(4)))
    common = ["--workspace", str(folder / "ws"), "--quiet"]
    assert run_command(["embed-text", str(folder / "words.txt"), "--shard-rows", "21", *common]) == 0
    assert run_command(["build-orp-bank", str(folder / "photos"), "--crops-per-image", "3", *common]) == 0
    assert run_command(["embed-crops", str(folder / "crops"), "--copies", "2", *common]) == 0
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("store", "damaged"),
    [
        ("prompts", ["part-00001.arrow"]),
        ("prompts", ["part-00000.parquet", "part-00002.parquet", "part-00002.arrow"]),
        ("prompts", ["prefix.arrow"]),
        ("orp", ["part-00000.arrow"]),
        ("orp", ["part-00000.parquet", "part-00000.arrow"]),
        ("image_features", ["part-00000.arrow"]),
        ("image_features", ["part-00000.parquet"]),
    ],
)
def test_damaged_and_missing_shards_come_back_with_equal_hashes(made: Path, store: str, damaged: list[str]) -> None:
    folder = made / "ws" / store
    before = hashes(folder)
    untouched = {path: path.stat().st_ino for path in folder.iterdir() if path.name not in damaged}
    (folder / damaged[0]).unlink()
    for name in damaged[1:]:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 4
        (folder / name).write_bytes(data)
    assert run_command(["verify", str(folder), "--quiet"]) == 3
    assert run_command(["verify", str(folder), "--repair", "--quiet"]) == 0
    assert hashes(folder) == before
    assert {path: path.stat().st_ino for path in untouched} == untouched, "nothing else was written"


def test_without_the_inputs_it_is_one_line_that_says_so(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, lost = made / "ws" / "orp", made / "ws" / "orp" / "part-00000.arrow"
    whole = lost.read_bytes()
    lost.unlink()
    (made / "photos").rename(made / "elsewhere")
    try:
        capsys.readouterr()
        assert run_command(["verify", str(folder), "--repair", "--quiet"]) == 3
        said = capsys.readouterr().err.strip()
    finally:
        (made / "elsewhere").rename(made / "photos")
        lost.write_bytes(whole)
    assert "\n" not in said
    assert f"{made / 'photos'}, from which {folder} was made, is gone" in said


def test_other_inputs_change_nothing(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, lost = made / "ws" / "prompts", made / "ws" / "prompts" / "part-00001.parquet"
    whole = lost.read_bytes()
    lost.unlink()
    (made / "words.txt").write_text("\n".join(WORDS).replace("f", "v"))
    try:
        assert run_command(["verify", str(folder), "--repair", "--quiet"]) == 3
        assert not lost.exists()
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    finally:
        (made / "words.txt").write_text("\n".join(WORDS))
        lost.write_bytes(whole)


_YEAR = 365 * 86400


def test_a_store_grows_to_the_same_files_when_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, more = tmp_path / "few.txt", tmp_path / "more.txt"
    few.write_text("street\nroad\nlane\n")
    more.write_text("street\nroad\nlane\nmarket\nsquare\n")

    def embed(words: Path, store: str) -> int:
        return run_command(["embed-text", str(words), "-o", str(tmp_path / store), "--shard-rows", "2", "--quiet"])

    assert [embed(few, "undisturbed"), embed(more, "undisturbed"), embed(few, "store")] == [0, 0, 0]
    now = time.time()
    for path in (tmp_path / "store").iterdir():
        os.utime(path, (now + _YEAR, now + _YEAR))
    monkeypatch.setattr(time, "time", lambda: now - _YEAR)
    assert embed(more, "store") == 0
    assert hashes(tmp_path / "store") == hashes(tmp_path / "undisturbed")
    assert verify(tmp_path / "store") == []
