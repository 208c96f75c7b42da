"""Shares of stage 1 made apart, in any order, one of them killed and run again, come to the store of one plain run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dptr.cache.crops.dataset import WordImages
from dptr.cache.stores import manifest as manifests
from dptr.cache.stores.manifest import Manifest
from dptr.cli import run_command
from dptr.pipeline.executors.executor import Part, parts_folder
from dptr.pipeline.executors.merge import merge
from dptr.pipeline.text.embed_text import EmbedTextSettings, embed_text

WORDS = [a + b + c for a in "bcdfghk" for b in "aeiou" for c in "lmnrst"]
SETTINGS = EmbedTextSettings(shard_rows=32)


def hashes(folder: Path) -> dict[str, str]:
    """Every file, the manifest among them, but for the lock that a killed process leaves behind."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock")]
    assert files
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def succeed(*arguments: str | Path) -> None:
    assert run_command([*map(str, arguments), "--quiet"]) == 0


def fail(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert run_command([*map(str, arguments), "--quiet"]) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text("\n".join([*WORDS, "naïve"]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven photos, one of them twice and one that is none."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(7):
        picture = Image.effect_mandelbrot((120, 90), (-2 + number * 0.3, -1.5, 1, 1.5), 50).convert("RGB")
        picture.save(folder / f"{number}.png")
    (folder / "4again.png").write_bytes((folder / "4.png").read_bytes())
    (folder / "2broken.png").write_bytes(b"no picture")
    return folder


def killed_at(monkeypatch: pytest.MonkeyPatch, commit: int, work: Callable[[], object]) -> None:
    """Do some work until a manifest is saved for the so-manieth time."""
    saved, save = [0], Manifest.save

    def die(*given: Any) -> None:
        saved[0] += 1
        if saved[0] == commit:
            raise KeyboardInterrupt
        save(*given)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(manifests.Manifest, "save", die)
        work()


def test_prompts_in_parts_are_those_of_one_run(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, whole, out = [str(corpus)], tmp_path / "whole", tmp_path / "parts"
    embed_text(paths, whole, SETTINGS)
    embed_text(paths, out, SETTINGS, Part(3, 3))
    killed_at(monkeypatch, 3, lambda: embed_text(paths, out, SETTINGS, Part(1, 3)))
    embed_text(paths, out, SETTINGS, Part(2, 3))
    again = embed_text(paths, out, SETTINGS, Part(1, 3))
    assert 0 < again.computed < again.rows, "what was done before the kill is not done again"
    succeed("merge", out)
    assert hashes(out) == hashes(whole), "the manifest, too"
    assert not parts_folder(out).exists()
    succeed("verify", out)


def test_parts_add_to_a_store_what_one_run_would(corpus: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.txt"
    more.write_text("\n".join(word + "x" for word in WORDS), encoding="utf-8")
    for name in ("whole", "parts"):
        embed_text([str(corpus)], tmp_path / name, SETTINGS)
    embed_text([str(more)], tmp_path / "whole", SETTINGS)
    for number in (2, 1):
        embed_text([str(more)], tmp_path / "parts", SETTINGS, Part(number, 2))
    succeed("merge", tmp_path / "parts")
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole")


def test_more_parts_than_shards_leave_some_with_nothing_to_do(corpus: Path, tmp_path: Path) -> None:
    embed_text([str(corpus)], tmp_path / "whole", EmbedTextSettings())
    for number in (1, 2):
        embed_text([str(corpus)], tmp_path / "parts", EmbedTextSettings(), Part(number, 2))
    succeed("merge", tmp_path / "parts")
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole")


def test_a_bank_in_parts_is_that_of_one_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dptr.pipeline.photos.build_orp_bank import OrpBankSettings, build_orp_bank

    settings = OrpBankSettings(crops_per_image=2, shard_rows=4, batch=4)
    build_orp_bank([photos], tmp_path / "whole", settings)
    out = tmp_path / "parts"
    killed_at(monkeypatch, 3, lambda: build_orp_bank([photos], out, settings, Part(2, 2)))
    build_orp_bank([photos], out, settings, Part(1, 2))
    build_orp_bank([photos], out, settings, Part(2, 2))
    succeed("merge", out)
    assert hashes(out) == hashes(tmp_path / "whole")
    succeed("verify", out)


def test_image_features_in_parts_are_those_of_one_run(
    draw_crops: Callable[[Path, Sequence[str]], Path], tmp_path: Path
) -> None:
    from dptr.pipeline.embed_crops import EmbedCropsSettings, embed_crops

    crops = draw_crops(tmp_path / "crops", ["one", "two", "three", "four", "five"])
    settings = EmbedCropsSettings(copies=2, shard_rows=4, batch=4)
    embed_crops([crops], tmp_path / "whole", settings)
    for number in (2, 1):
        embed_crops([crops], tmp_path / "parts", settings, Part(number, 2))
    succeed("merge", tmp_path / "parts")
    assert hashes(tmp_path / "parts") == hashes(tmp_path / "whole")


def test_rendered_crops_in_parts_are_those_of_one_run(corpus: Path, tmp_path: Path) -> None:
    command: list[str | Path] = ["render-words", corpus, "--count", "20", "--style", "clean"]
    succeed(*command, "-o", tmp_path / "whole.parquet")
    for number in (3, 1, 2):
        succeed(*command, "-o", tmp_path / "crops", "--part", f"{number}/3")
    parts = WordImages.open_as_written([tmp_path / "crops.parts"])
    whole = WordImages.open_as_written([tmp_path / "whole.parquet"])
    assert len(whole) == 20
    assert [(one.label, parts.read(one)) for one in parts.samples] == [
        (one.label, whole.read(one)) for one in whole.samples
    ]


def test_a_merge_names_the_part_that_is_missing_or_not_finished(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "store"
    assert "no parts in" in fail(capsys, "merge", out)
    embed_text([str(corpus)], out, SETTINGS, Part(1, 3))
    embed_text([str(corpus)], out, SETTINGS, Part(3, 3))
    assert "part 2/3 is missing" in fail(capsys, "merge", out)
    killed_at(monkeypatch, 3, lambda: embed_text([str(corpus)], out, SETTINGS, Part(2, 3)))
    assert "part 2/3 is not finished" in fail(capsys, "merge", out)
    assert not (out / "manifest.json").exists()


def test_a_damaged_part_is_found_and_named(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "store"
    for number in (1, 2):
        embed_text([str(corpus)], out, SETTINGS, Part(number, 2))
    damaged = parts_folder(out) / "2-of-2" / "part-00001.arrow"
    content = bytearray(damaged.read_bytes())
    content[-100] ^= 1
    damaged.write_bytes(content)
    assert run_command(["merge", str(out), "--quiet"]) == 3
    assert str(damaged) in capsys.readouterr().err


def test_a_store_that_has_grown_in_the_meantime_rejects_its_parts(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "store", tmp_path / "other.txt"
    other.write_text("another\n")
    for number in (1, 2):
        embed_text([str(corpus)], out, SETTINGS, Part(number, 2))
    embed_text([str(other)], out, SETTINGS)
    assert "has changed since its parts were started" in fail(capsys, "merge", out)
    assert Manifest.load(out, "prompts").rows == 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2"])
def test_what_is_no_part_is_rejected(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert "such as 3/16" in fail(capsys, "embed-text", corpus, "-o", tmp_path / "store", f"--part={text}")


def test_what_depends_on_all_parts_is_rejected(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command: list[Any] = ["embed-text", corpus, "-o", tmp_path / "store", "--part", "1/2"]
    assert "--cover-subwords" in fail(capsys, *command, "--cover-subwords", "2")


def test_the_figures_of_a_merge(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "store"
    for number in (1, 2):
        embed_text([str(corpus)], out, SETTINGS, Part(number, 2))
    capsys.readouterr()
    succeed("merge", out, "--json")
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["rows"], figures["computed"], figures["parts"]) == (len(WORDS), len(WORDS), 2)


def in_parts(corpus: Path, out: Path, settings: EmbedTextSettings = SETTINGS, parts: Sequence[int] = (1, 2)) -> None:
    for number in parts:
        embed_text([str(corpus)], out, settings, Part(number, 2))


def reordered(corpus: Path, folder: Path) -> Path:
    path = folder / "reordered.txt"
    path.write_text("\n".join([*reversed(WORDS), "naïve"]) + "\n", encoding="utf-8")
    return path


def other_words(corpus: Path, folder: Path) -> Path:
    path = folder / "other.txt"
    path.write_text("\n".join([*WORDS[:-1], "other", "naïve"]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("other", [reordered, other_words, None])
def test_parts_of_other_corpora_or_settings_are_not_merged(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: Callable[[Path, Path], Path] | None
) -> None:
    out = tmp_path / "store"
    in_parts(corpus, out, parts=(1,))
    if other is None:
        in_parts(corpus, out, EmbedTextSettings(shard_rows=30), parts=(2,))
    else:
        in_parts(other(corpus, tmp_path), out, parts=(2,))
    before = hashes(parts_folder(out))
    assert "from other inputs, with other settings" in fail(capsys, "merge", out)
    assert hashes(parts_folder(out)) == before
    assert not (out / "manifest.json").exists()


def test_a_part_under_another_name_is_not_merged(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "store"
    in_parts(corpus, out)
    folder = parts_folder(out)
    shutil.rmtree(folder / "2-of-2")
    shutil.copytree(folder / "1-of-2", folder / "2-of-2")
    assert "under another name" in fail(capsys, "merge", out)


def test_a_part_that_is_written_just_now_is_not_merged(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "store"
    in_parts(corpus, out)
    code = "import sys; from pathlib import Path; from dptr.cache.stores.lock import locked\n"
    code += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", code, str(parts_folder(out) / "2-of-2")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert "is being written by" in fail(capsys, "merge", out)
        holder.communicate("")
    succeed("merge", out)


def test_a_part_is_not_continued_with_another_corpus(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "store"
    in_parts(corpus, out)
    other = other_words(corpus, tmp_path)
    told = fail(capsys, "embed-text", reordered(other, tmp_path), "-o", out, "--shard-rows", "32", "--part", "1/2")
    assert "was started with other inputs or settings" in told


def test_a_merge_that_is_killed_between_two_removals_is_repeated(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_parts(corpus, tmp_path / "parts")
    embed_text([str(corpus)], tmp_path / "whole", SETTINGS)
    out, calls, unlink = tmp_path / "parts", [0], os.unlink

    def die(path: Any, *given: Any, **named: Any) -> None:
        calls[0] += "dir_fd" in named
        if calls[0] == 2:
            raise KeyboardInterrupt
        unlink(path, *given, **named)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "unlink", die)
        merge(out)
    assert merge(out).rows == len(WORDS)
    assert hashes(out) == hashes(tmp_path / "whole")
    assert not parts_folder(out).exists()
