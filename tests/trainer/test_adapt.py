"""Adapting a recogniser: what is held out, what is chosen, what is kept of the start, and what is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import ADAPTATION_FILE
from dptr.cache.text.charset import Charset
from dptr.cache.text.lexicon import Lexicon
from dptr.cache.text.normalization import Normalization
from dptr.cli import run_command
from dptr.trainer import adapt as stage
from dptr.trainer.adapt import Material, adapt, fitted, groups_of
from dptr.trainer.evaluate import ReadImages
from dptr.trainer.finetune import finetune, parts_of
from dptr.trainer.model.model_file import ModelFile, save_model
from dptr.trainer.model.recognizer import Prediction, load_recognizer
from dptr.trainer.read import load
from dptr.trainer.recipe import Recipe, load_recipe
from dptr.trainer.training.runs import Run

CHARSET = Charset("abcdefgh")
WORDS = ["bad", "cab", "dab", "fad", "gab", "had", "bag", "cad", "fed", "bed", "egg", "age"]
SMALL = [
    "decoder.kind=ctc", "decoder.dim=16", "decoder.heads=2", "decoder.feed_forward=16", "decoder.layers=1",
    "encoder.kind=convolution", "encoder.channels=4", "encoder.dim=16", "fmu.kind=none", "finetune.ctc_weight=0",
    "finetune.steps=2", "finetune.batch_size=4", "finetune.augmentation=0",
]  # fmt: skip
QUICK = ["finetune.steps=2", "finetune.batch_size=4", "finetune.validate_every=1"]


@pytest.fixture(name="start", scope="module")
def _start(tmp_path_factory: pytest.TempPathFactory, draw_crops: Any) -> Run:
    folder = tmp_path_factory.mktemp("start")
    crops = opened(draw_crops(folder / "first", WORDS))
    return Run.load(finetune(crops, CHARSET, None, load_recipe("tiny", SMALL), folder / "start").out)


@pytest.fixture(autouse=True)
def _few_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_RENDERED", 6)
    monkeypatch.setattr(stage, "_GENERAL_READ", 4)


def recipe(start: Run, *changes: str) -> Recipe:
    return load_recipe("adapt", [*QUICK, *changes], parts_of(start))


def opened(folder: Path, charset: Charset = CHARSET) -> WordImages:
    return WordImages.open([folder], charset, Normalization())


def test_crops_of_one_receipt_photo_or_folder_are_a_group() -> None:
    receipts = [f"{receipt:03d}_{line:03d}.jpg" for receipt in range(6) for line in range(3)]
    assert groups_of(receipts) == [name[:3] for name in receipts]
    folders = [f"{photo}/{line}.png" for photo in "abcdef" for line in range(2)]
    assert groups_of(folders) == [name[0] for name in folders]
    for alone in ([f"word_{number}.png" for number in range(9)], [f"{number:03d}.png" for number in range(9)]):
        assert groups_of(alone) == alone


def test_few_crops_are_cross_validated_by_group_and_many_are_split_once(tmp_path: Path, draw_crops: Any) -> None:
    folder = draw_crops(tmp_path / "crops", WORDS)
    rows = [(f"{number}.png", f"{number // 2}_{number % 2}.png") for number in range(len(WORDS))]
    for before, after in rows:
        (folder / before).rename(folder / after)
    lines = [f"{after}\t{word}\n" for (_, after), word in zip(rows, WORDS, strict=True)]
    (folder / "labels.tsv").write_text("".join(lines))
    settings = Recipe().replace("finetune", few=100, folds=3, validation_share=0.3).finetune
    parts = stage._parts(opened(folder), None, settings)
    held_out = [{sample.key for sample in part.validation.samples} for part in parts]
    assert sum(map(len, held_out)) == len(set.union(*held_out)) == len(WORDS)
    for keys, part in zip(held_out, parts, strict=True):
        assert len({key.split("_")[0] for key in keys}) == 2, "both crops of a group, or none"
        assert not keys & {sample.key for sample in part.training.samples}
    (once,) = stage._parts(opened(folder), None, settings.model_copy(update={"few": 10}))
    assert len(once.validation) == 4
    with pytest.raises(UserError, match="5 labelled crops are too few"):
        stage._parts(opened(folder).only(range(5)), None, settings)


def test_an_adaptation_compares_keeps_what_is_chosen_and_is_not_done_twice(
    tmp_path: Path, start: Run, draw_crops: Any
) -> None:
    crops, out = opened(draw_crops(tmp_path / "crops", WORDS)), tmp_path / "out"
    text = Material(text=dict.fromkeys(WORDS, 2.0))
    summary = adapt(crops, CHARSET, start, recipe(start), out, material=text)
    assert (summary.folds, summary.own.crops, summary.rows) == (3, 12, 12)
    assert summary.general is not None
    assert summary.general.crops == 4
    assert any("12" in line and "3-fold cross-validation" in line for line in summary.lines()[0].splitlines())
    names = {path.name for path in out.iterdir()}
    assert names >= {"adaptation.json", "checkpoints", "recipe.toml", "run.json"}
    assert "adaptation" not in names, "what was trained on the way is removed"
    again = adapt(crops, CHARSET, start, recipe(start), out, material=text)
    assert again == replace(summary, computed=0, coverage=None)
    assert len(load(out).read([Image.new("RGB", (40, 20))])) == 1
    with pytest.raises(DamagedStore, match="other crops or with other settings"):
        adapt(crops, CHARSET, start, recipe(start, "finetune.seed=5"), out, material=text)


def test_what_does_not_help_is_not_used(tmp_path: Path, start: Run, draw_crops: Any) -> None:
    """Of wrong labels nothing can be learnt that holds for others: the start comes out as it went in."""
    labels = ["a", "bb", "ccc", "dddd", "e", "ff", "ggg", "hhhh", "ab", "ba", "abc", "cba"]
    crops = opened(draw_crops(tmp_path / "crops", WORDS))
    crops = WordImages.open([relabelled(tmp_path / "crops", labels)], CHARSET, Normalization())
    summary = adapt(crops, CHARSET, start, recipe(start, "finetune.learning_rate=1e-12"), tmp_path / "out")
    assert summary.own.after == summary.own.before
    assert "no configuration was better on your crops than the starting model" in summary.lines()[0]
    assert any("the starting weights" in line for line in summary.remarks)
    before, after = start.weights(), Run.load(tmp_path / "out").weights()
    assert all(torch.equal(before[name], after[name]) for name in before)


def relabelled(folder: Path, labels: list[str]) -> Path:
    (folder / "labels.tsv").write_text("".join(f"{number}.png\t{label}\n" for number, label in enumerate(labels)))
    return folder


def test_the_lexicon_of_the_start_is_kept_in_a_run_and_its_exports(
    tmp_path: Path, start: Run, draw_crops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = stage._lexica
    monkeypatch.setattr(stage, "_lexica", lambda *arguments: offered(*arguments)[:1])
    save_model(start, tmp_path / "start.safetensors", words=Lexicon({"bad": 3.0}, 0.4))
    file = ModelFile.open(tmp_path / "start.safetensors")
    assert file.lexicon() == Lexicon({"bad": 3.0}, 0.4)
    crops = opened(draw_crops(tmp_path / "crops", WORDS))
    summary = adapt(crops, CHARSET, file, recipe(start), tmp_path / "out")
    assert summary.lexicon == "that of the start"
    run = Run.load(tmp_path / "out")
    assert run.lexicon() == file.lexicon()
    save_model(run, tmp_path / "again.safetensors", words=run.lexicon())
    model = load_recognizer(ModelFile.open(tmp_path / "again.safetensors"))
    assert model._words is not None
    assert model._words.weight == 0.4


def test_labels_widths_and_characters_follow_the_crops(tmp_path: Path, start: Run) -> None:
    folder = tmp_path / "lines"
    folder.mkdir()
    line = "a bad cab had a dab bag egg aged fed cab 7"
    for number in range(8):
        Image.new("RGB", (20 * len(line) // 2, 20), (9 * number, 0, 0)).save(folder / f"{number}.png")
    relabelled(folder, [line] * 8)
    charset, settings = fitted([folder], Material(text={"xylophone": 1.0}), start, recipe(start), None)
    assert set(charset.characters) == set(CHARSET.characters) | set(line) | set("xylophone")
    assert settings.decoder.max_label_length == len(line)
    widths = [int(width) for width in settings.encoder.image_widths.split(",")]
    assert max(widths) // 4 > 1.5 * len(line)
    kept, _ = fitted([folder], Material(), start, recipe(start), Charset("ab"))
    assert kept == Charset("ab")


def test_the_words_of_the_start_give_way_only_to_what_reads_clearly_more() -> None:
    def option(right: int, loses_words: bool) -> Any:
        found = [Prediction("a" if number < right else "b", 1.0, [1.0]) for number in range(100)]
        return stage._Option(0, "", None, [ReadImages([""] * 100, ["a"] * 100, found)], loses_words)

    both, alone = option(80, False), option(81, True)
    assert max([both, alone], key=stage._Option.rank) is both
    assert max([both, option(83, True)], key=stage._Option.rank).loses_words
    assert stage._held_out_choice([both, alone]) == both.read


def test_predictions_count_that_are_confident_and_of_the_texts_kind() -> None:
    plates = {f"{a}{b}{c}": 1.0 for a in "abc" for b in "abc" for c in "abc"}
    allowed = stage.allowed_by(plates, CHARSET, ["abc", "bca", "cab", "aab"])
    assert [allowed(text) for text in ("cba", "ccc", "hhh", "abcabc")] == [True, True, False, False]
    predictions = [Prediction("abc", confidence, [1.0]) for confidence in np.linspace(0.4, 0.99, 40)]
    ground_truths = ["abc" if prediction.confidence > 0.78 else "cba" for prediction in predictions]
    option = stage._Option(0, "", None, [ReadImages([""] * 40, ground_truths, predictions)])
    assert stage._threshold(option, allowed) == (0.8, 1.0)
    assert stage._threshold(option, lambda _: False) == (None, 0.0)


def test_unlabelled_crops_are_trained_on_and_labelled_ones_among_them_are_not(
    tmp_path: Path, start: Run, draw_crops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_threshold", lambda option, allowed: (0.0, 1.0))
    crops = opened(draw_crops(tmp_path / "crops", WORDS))
    more = draw_crops(tmp_path / "more", [*WORDS[:3], "face", "head", "bead"])
    pictures = sorted(more.glob("*.png"))
    summary = adapt(crops, CHARSET, start, recipe(start), tmp_path / "out", material=Material(unlabelled=pictures))
    remark = next(line for line in summary.remarks if line.startswith("unlabelled"))
    assert "of 3 have predictions of confidence 0 or more" in remark


def test_the_command_adapts_a_recogniser_with_a_recipe_of_its_own(
    tmp_path: Path, start: Run, draw_crops: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    crops, out = draw_crops(tmp_path / "crops", WORDS), tmp_path / "out"
    command = ["finetune", "--from", str(start.folder), str(crops), "--steps", "1", "-o", str(out), "--quiet"]
    assert run_command(command) == 0
    said = capsys.readouterr().out
    assert "your crops, 3-fold cross-validation" in said
    assert "general words, rendered" in said
    assert Run.load(out).charset == start.charset
    assert run_command(["finetune", "--from", "none", str(crops), "--text", str(crops), "-o", "x"]) == 2
    assert "Name one: --from bundled" in capsys.readouterr().err


def test_a_recipe_that_does_not_adapt_trains_on_from_a_recogniser(
    tmp_path: Path, start: Run, draw_crops: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the grid of the paper's ablations needs it: nothing is rendered, and other characters leave the charset."""
    crops, out = draw_crops(tmp_path / "crops", [*WORDS, "zoo"]), tmp_path / "out"
    command = ["finetune", "--from", str(start.folder), "--recipe", "tiny", str(crops), "-o", str(out)]
    command += ["--quiet", *(f"--set={change}" for change in ("finetune.adapts=false", *QUICK))]
    assert run_command(command) == 0
    assert "general words" not in capsys.readouterr().out
    assert not (out / ADAPTATION_FILE).exists()
    run = Run.load(out)
    assert (run.charset, run.step()) == (start.charset, 2)
    before, after = (load_recognizer(one).state_dict() for one in (start, run))
    assert before.keys() == after.keys()
    assert run_command([*command, "--text", str(crops)]) == 2
    assert "adapt a recogniser" in capsys.readouterr().err


def test_crops_that_are_all_validated_on_are_an_error(tmp_path: Path, draw_crops: Any) -> None:
    crops = str(draw_crops(tmp_path / "crops", ["street", "road", "lane", "square", "avenue", "court"]))
    assert (
        run_command(["finetune", crops, "--from", "bundled", "--validation", crops, "--workspace", str(tmp_path)]) == 2
    )
