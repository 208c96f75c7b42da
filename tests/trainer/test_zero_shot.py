"""Decoders pre-trained on pooled vectors and on columns, and reading images with them before any labelled crop."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

from dptr.cache.errors import UserError
from dptr.cache.progress import set_quiet
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import Embeddings
from dptr.cli import run_command
from dptr.pipeline.clip.clip_files import BUNDLED
from dptr.pipeline.clip.loading import load_clip
from dptr.trainer.data.prompt_batches import NoiseSource, column_memory, place_letters, pooled_memory
from dptr.trainer.model.encoders.clip import whole_hash
from dptr.trainer.read import load
from dptr.trainer.recipe import NoiseSettings
from dptr.trainer.training.runs import Run

DIM = 8
Dptr = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    set_quiet(True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, save_prompts: Callable[..., PromptStore]) -> PromptStore:
    """Labels abc and de: tokens ab, c, the end, and d, e, the end; token t of row r is 10 r + t + 1."""
    folder = tmp_path_factory.mktemp("prompts")
    values = np.array([1, 2, 3, 11, 12, 13], np.float32)[:, None].repeat(DIM, 1)
    pooled = np.eye(DIM, dtype=np.float32)[:2] * 5
    catalogue = pa.table(
        {
            "label": ["abc", "de"],
            "label_length": pa.array([3, 2], pa.int16()),
            "token_letters": pa.array([[0, 0, 2, 1, 0], [0, 0, 1, 1, 0]], pa.list_(pa.int16())),
            "source": ["x"] * 2,
        }
    )
    return save_prompts(folder, catalogue, Embeddings(values, np.array([3, 3]), pooled), "abcde")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, save_bank: Callable[..., OrpBank]) -> OrpBank:
    """Four crops whose pooled vectors lie to both sides of (1, 1, 1, …): their mean is far from zero."""
    pooled = np.ones((4, DIM), np.float32)
    pooled[:, 0] += [1, -1, 0, 0]
    pooled[:, 1] += [0, 0, 1, -1]
    return save_bank(tmp_path_factory.mktemp("orp"), np.full((4, 4, DIM), 7), pooled)


def test_a_pooled_memory_is_one_vector_of_length_one_with_noise_up_to_the_ratio(
    store: PromptStore, bank: OrpBank
) -> None:
    rows = np.array([0, 1] * 200)
    clean = pooled_memory(store, rows, None, 0.0, False, np.random.default_rng(0)).tokens
    assert clean.shape == (400, 1, DIM)
    assert torch.equal(clean[:2, 0], torch.eye(DIM)[:2])
    noise = NoiseSource(bank, NoiseSettings(), None)
    noisy = pooled_memory(store, rows, noise, 1.2, False, np.random.default_rng(0)).tokens
    added = (noisy - clean)[:, 0]
    lengths = added.norm(dim=1)
    assert 1.15 < float(lengths.max()) <= 1.2
    assert float(lengths.min()) < 0.05
    assert float(lengths.mean()) == pytest.approx(0.6, abs=0.05)
    # Noise points away from the bank's mean, to all sides: it adds no constant direction.
    directions = torch.nn.functional.normalize(added, dim=1)
    assert float(directions.mean(0).norm()) < 0.3


def test_centred_vectors_have_their_sides_mean_taken_away(store: PromptStore) -> None:
    centred = pooled_memory(store, np.array([0, 1]), None, 0.0, True, np.random.default_rng(0)).tokens[:, 0]
    assert torch.allclose(centred[0], -centred[1], atol=1e-6), "two vectors lie opposite, seen from their mean"
    torch.testing.assert_close(centred.norm(dim=1), torch.ones(2))


def test_columns_show_each_letters_state_in_order_and_nothing_of_template_and_end(store: PromptStore) -> None:
    seen = set()
    for seed in range(50):
        memory = column_memory(store, np.array([0, 1]), None, 0.0, 16, np.random.default_rng(seed)).to("cpu")
        assert memory.tokens.shape == (2, 16, DIM)
        for row, own in enumerate(([1, 2], [11, 12])):
            values = memory.tokens[row, :, 0].tolist()
            shown = [value for value in values if value]
            assert shown == sorted(shown)
            assert sorted(set(shown)) == own
            seen.add(tuple(values))
    assert len(seen) > 30, "widths and margins are drawn anew"
    shares = []
    for seed in range(200):
        columns = (
            column_memory(store, np.array([0]), None, 0, 16, np.random.default_rng(seed)).to("cpu").tokens[0, :, 0]
        )
        shares.append(float((columns == 1).sum() / (columns == 2).sum()))
    assert 1.6 < np.median(shares) < 2.4, "two letters take up about twice one's room"


def test_every_letter_has_a_column_however_many_there_are() -> None:
    for letters in (1, 2, 15, 31, 32):
        for seed in range(20):
            shown = place_letters(letters, 32, np.random.default_rng(seed))
            assert len(shown) == 32
            assert sorted(set(shown[shown >= 0].tolist())) == list(range(letters))
    with pytest.raises(UserError, match="33 letters"):
        place_letters(33, 32, np.random.default_rng(0))


def test_noise_lies_on_columns_beside_the_word_too(store: PromptStore, bank: OrpBank) -> None:
    noise = NoiseSource(bank, NoiseSettings(), None)
    clean = column_memory(store, np.array([0]), None, 0.5, 16, np.random.default_rng(1)).to("cpu").tokens
    noisy = column_memory(store, np.array([0]), noise, 0.5, 16, np.random.default_rng(1)).to("cpu").tokens
    torch.testing.assert_close(noisy - clean, torch.full_like(clean, 3.5))


# The whole way with the bundled CLIP.


@pytest.fixture(scope="module")
def workspace(stores: Path, tmp_path_factory: pytest.TempPathFactory, draw_crops: Any) -> Path:
    """A folder with stores in ``ws``, and crops of eight of their words."""
    folder = tmp_path_factory.mktemp("zero")
    shutil.copytree(stores, folder / "ws")
    draw_crops(folder / "crops", PromptStore(stores / "prompts").labels.to_pylist()[:8])
    return folder


@pytest.fixture
def command(dptr: Dptr, workspace: Path) -> Dptr:
    return lambda *arguments: dptr(*arguments, "--workspace", str(workspace / "ws"), "--quiet")


@pytest.fixture
def pretrained(command: Dptr, small: Callable[..., list[str]], workspace: Path) -> Callable[..., Path]:
    """Kind of memory, further options -> a run of three steps."""

    def run(kind: str, *more: object) -> Path:
        out = workspace / "_".join(["run", kind, *map(str, more)]).replace("/", "")
        sizes = ["--set=decoder.kind=nrtr", *small("decoder", "pretrain")]
        command("pretrain", "-o", out, "--steps", "3", f"--set=memory.kind={kind}", *sizes, *more)
        return out

    return run


@pytest.mark.parametrize("kind", ["pooled", "tokens"])
def test_a_pre_trained_run_reads_and_is_measured_without_one_label(
    workspace: Path, command: Dptr, pretrained: Callable[..., Path], kind: str
) -> None:
    run = pretrained(kind)
    evaluated = command("evaluate", run, workspace / "crops")
    assert evaluated["rows"] == 8
    assert 0 <= evaluated["metrics"]["accuracy_36_weighted"] <= 1
    read = command("read", run, workspace / "crops")
    assert (read["rows"], read["quarantined"]) == (8, 0)


def test_fine_tuning_from_pooled_starts_where_zero_labels_left_it(
    workspace: Path, command: Dptr, pretrained: Callable[..., Path]
) -> None:
    run = pretrained("pooled", "--set=memory.centred=true")
    tuned = workspace / "tuned"
    unmoved = ["--set", "finetune.learning_rate=1e-12", "--set", "finetune.ctc_weight=0"]
    made = command("finetune", workspace / "crops", "--from", run, "-o", tuned,
                   "--steps", "1", *unmoved)  # fmt: skip
    assert not made.get("quarantined")
    assert Run.load(tuned).recipe.memory.kind == "pooled"
    assert Run.load(tuned).recipe.encoder.kind == "clip:tiny"
    crops = sorted((workspace / "crops").glob("*.png"))
    zero, after = load(run), load(tuned)
    pixels = torch.randint(0, 256, (2, 3, *zero.recognizer.image_size), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(zero.recognizer.memory(pixels).tokens, after.recognizer.memory(pixels).tokens)
    assert float(zero.recognizer.decoder.image_mean.norm()) > 0.1, "images are centred by the bank's mean"
    assert [prediction.text for prediction in zero.read(crops)] == [prediction.text for prediction in after.read(crops)]


def test_a_clip_is_known_by_its_weights_and_not_by_its_name(
    workspace: Path,
    stores: Path,
    command: Dptr,
    pretrained: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert whole_hash(BUNDLED) == load_clip("tiny").weights
    clip = workspace / "clip"
    shutil.copytree(BUNDLED, clip)
    own: list[object] = ["--prompts", workspace / "own", "--orp", workspace / "own_orp"]
    command("embed-text", stores.parent / "words.txt", "--clip", clip, "-o", workspace / "own")
    command("build-orp-bank", stores.parent / "photo.png", "--clip", clip, "-o", workspace / "own_orp")
    run = pretrained("pooled", *own)
    command("read", run, workspace / "crops")

    weights = load_file(clip / "model.safetensors")
    weights["visual_projection.weight"] += 1
    save_file(weights, clip / "model.safetensors", {"format": "pt"})
    tries: list[list[str | Path]] = [["read", run, workspace / "crops"]]
    tries.append(["finetune", workspace / "crops", "--from", run])
    for words in tries:
        assert run_command([*map(str, words), "--workspace", str(workspace / "ws"), "--quiet"]) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert f"the CLIP {clip} has other weights than the one that embedded the text of {run}" in line


def test_columns_pre_train_ctc_and_are_fine_tuned_without_fmu_but_read_nothing_before(
    workspace: Path, command: Dptr, pretrained: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretrained("columns", "--set=decoder.kind=ctc")
    assert run_command(["read", str(run), str(workspace / "crops"), "--quiet"]) == 2
    assert "columns" in capsys.readouterr().err
    tuned = workspace / "tuned_columns"
    command("finetune", workspace / "crops", "--from", run, "-o", tuned, "--steps", "1",
            "--set", "encoder.kind=convolution")  # fmt: skip
    assert Run.load(tuned).recipe.fmu.kind == "none"


def test_centring_images_without_a_bank_is_rejected_with_what_to_do(
    workspace: Path, small: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pretrain", "--steps", "1", "--set=memory.kind=pooled", *small("decoder")]
    arguments += ["--set=memory.centred=true", "--set=noise.ratio=0"]
    assert run_command([*arguments, "--workspace", str(workspace / "ws"), "-o", str(workspace / "x"), "--quiet"]) == 2
    assert "memory.centred=false" in capsys.readouterr().err
