"""Fine-tuning from whatever was trained before, and reading without naming a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from dptr.cache.crops.dataset import WordImages, write_word_images
from dptr.cache.errors import UserError
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.cache.workspace import Workspace
from dptr.cli import run_command
from dptr.trainer.finetune import encoder_of, finetune, parts_of
from dptr.trainer.model.model_file import BUNDLED, ModelFile, save_model
from dptr.trainer.named_models import recogniser_first
from dptr.trainer.recipe import Recipe, load_recipe
from dptr.trainer.training.runs import Run

CHARSET = Charset("ab")
SMALL = [
    "decoder.kind=ctc", "decoder.dim=16", "decoder.heads=2", "decoder.feed_forward=16", "decoder.layers=1",
    "encoder.kind=convolution", "encoder.channels=4", "encoder.dim=16", "fmu.kind=none", "finetune.ctc_weight=0",
    "finetune.steps=3", "finetune.batch_size=4", "finetune.augmentation=0",
]  # fmt: skip


@pytest.fixture(name="crops", scope="module")
def _crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crops")
    with write_word_images(folder / "crops.lmdb") as writer:
        for number in range(12):
            path = folder / f"{number}.png"
            Image.new("RGB", (40, 16), (20 * number, 9, 99)).save(path)
            writer.write(path.read_bytes(), "ab"[: 1 + number % 2])
    return folder / "crops.lmdb"


@pytest.fixture(name="first", scope="module")
def _first(tmp_path_factory: pytest.TempPathFactory, crops: Path) -> Run:
    return Run.load(finetune(images(crops), CHARSET, None, recipe(), tmp_path_factory.mktemp("runs") / "first").out)


def recipe(*changes: str) -> Recipe:
    return load_recipe("tiny", [*SMALL, *changes])


def images(crops: Path) -> WordImages:
    return WordImages.open([crops], CHARSET, Normalization())


def test_a_recogniser_is_trained_further_with_all_its_parts(tmp_path: Path, crops: Path, first: Run) -> None:
    assert set(parts_of(first)) == {"decoder", "encoder", "fmu", "memory"}
    again = finetune(images(crops), CHARSET, first, recipe("finetune.learning_rate=1e-12"), tmp_path / "second")
    assert again.coverage is not None
    assert len(again.coverage.lines()) == 1, "all is loaded whole"
    before, after = first.weights("last"), Run.load(again.out).weights("last")
    name = "encoder.stages.0.0.weight"
    assert (before[name] - after[name]).abs().max() < 1e-6


def test_a_model_file_in_half_precision_can_be_trained_further(tmp_path: Path, crops: Path, first: Run) -> None:
    save_model(first, tmp_path / "whole.safetensors")
    save_model(first, tmp_path / "half.safetensors", half=True)
    file = ModelFile.open(tmp_path / "half.safetensors")
    assert file.path.stat().st_size < 0.6 * (tmp_path / "whole.safetensors").stat().st_size
    again = finetune(images(crops), CHARSET, file, recipe(), tmp_path / "second")
    assert again.coverage is not None
    assert len(again.coverage.lines()) == 1, "all is loaded whole"


def test_one_in_half_precision_passes_on_the_characters_that_another_charset_shares(
    tmp_path: Path, crops: Path, first: Run
) -> None:
    save_model(first, tmp_path / "half.safetensors", half=True)
    file, slow, other = ModelFile.open(tmp_path / "half.safetensors"), "finetune.learning_rate=1e-12", Charset("xa")
    data = WordImages.open([crops], other, Normalization())
    again = finetune(data, other, file, recipe(slow), tmp_path / "second")
    assert again.coverage is not None
    assert again.coverage.partial["decoder.head.weight"] == "1 of 2 characters"
    head, before = Run.load(again.out).weights("last")["decoder.head.weight"], file.weights()["decoder.head.weight"]
    rows = [other.characters.index("a") + 1, CHARSET.characters.index("a") + 1]
    assert (head[rows[0]] - before[rows[1]].float()).abs().max() < 1e-6


def test_a_recogniser_goes_on_with_higher_images(tmp_path: Path, crops: Path, first: Run) -> None:
    slow = recipe("finetune.learning_rate=1e-12", "encoder.image_height=48")
    higher = Run.load(finetune(images(crops), CHARSET, first, slow, tmp_path / "higher").out)
    assert higher.recipe.encoder.image_height == 48
    before, after = first.weights(), higher.weights("last")
    merged = "encoder.merge.0.weight"
    assert (before[merged].shape[2], after[merged].shape[2]) == (2, 3)
    torch.testing.assert_close(after[merged].sum(2), before[merged].sum(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(after[merged][:, :, 0], before[merged][:, :, 0] * 2 / 3, atol=1e-6, rtol=0)


def test_the_encoder_of_a_recogniser_serves_another_decoder(tmp_path: Path, crops: Path) -> None:
    first = finetune(images(crops), CHARSET, None, recipe('encoder.image_widths="64"'), tmp_path / "first")
    run = Run.load(first.out)
    changes = [f"--set={change}" for change in SMALL if not change.startswith("encoder.")]
    changes += ["--set=decoder.kind=nrtr", "--set=fmu.kind=queries", "--set=fmu.queries=4", "--set=fmu.heads=2"]
    command = ["finetune", str(crops), "--from", "none", "--encoder", str(first.out), "--charset", "36"]
    done = run_command(
        [*command, "--set=finetune.encoder_lr_scale=0", *changes, "-o", str(tmp_path / "other"), "--quiet"]
    )
    assert done == 0
    other = Run.load(tmp_path / "other")
    assert other.recipe.encoder == encoder_of(run)
    assert other.recipe.encoder.image_widths == ""
    before, after = run.weights(), other.weights()
    encoder = [name for name in before if name.startswith("encoder.") and name.endswith("weight")]
    assert encoder
    assert all((before[name] == after[name]).all() for name in encoder)


def test_an_encoder_is_not_taken_from_what_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "nothing"
    missing.mkdir()
    assert run_command(["finetune", str(tmp_path), "--from", "none", "--encoder", str(missing)]) != 0
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_crops_for_validation_are_never_trained_on(tmp_path: Path, crops: Path) -> None:
    summary = finetune(images(crops), CHARSET, None, recipe(), tmp_path / "run", validation=images(crops).only([0, 1]))
    assert summary.rows == 10
    with pytest.raises(UserError, match="all 12 training crops are validation crops"):
        finetune(images(crops), CHARSET, None, recipe(), tmp_path / "same", validation=images(crops))
    assert Run.load(summary.out).data["validation"]["rows"] == 2


def test_the_first_argument_may_name_a_recogniser(tmp_path: Path, crops: Path, first: Run) -> None:
    workspace, picture = Workspace(tmp_path / "dptr_data"), str(crops.with_name("0.png"))
    shutil.copytree(first.folder, workspace.runs / "mine")
    assert recogniser_first(workspace, [picture]) == (BUNDLED, [picture])
    assert recogniser_first(workspace, ["-"]) == (BUNDLED, ["-"])
    assert recogniser_first(workspace, ["mine", picture]) == (workspace.runs / "mine", [picture])
