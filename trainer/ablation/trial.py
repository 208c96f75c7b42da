"""Run one trial: train a recogniser as its arm says, read the test sets, and return which images were read right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from dptr.cache.charset import Charset
from dptr.cache.errors import UserError
from dptr.cache.file_names import TIMINGS_FILE
from dptr.cache.stores.files import write_json
from dptr.cache.stores.neighbours import Neighbours
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.word_images.dataset import WordImages
from dptr.trainer.ablation.arms import Pretraining, Trial, key_of
from dptr.trainer.ablation.crops import charset_named, fingerprint, open_data, open_validation
from dptr.trainer.ablation.remembered import remember_tests
from dptr.trainer.evaluate import ReadImages, read_word_images
from dptr.trainer.finetune import finetune
from dptr.trainer.metrics import field_score
from dptr.trainer.model.encoders.clip import ClipEncoder
from dptr.trainer.model.recognizer import Recognizer, load_recognizer
from dptr.trainer.pretrain import pretrain
from dptr.trainer.training.recipe import Recipe, recipe_to_toml
from dptr.trainer.training.runs import Run
from dptr.trainer.training.settings import TrainingSettings
from dptr.trainer.zero_label import zero_label_recognizer

#: Steps that are timed where a budget is given in seconds: the first third warms up.
_TIMED_STEPS = 24


def run_pretraining(wanted: Pretraining, device: str) -> None:
    """Pre-train a decoder, or find it finished; goes on where it stopped."""
    bank = None if wanted.orp is None else OrpBank(wanted.orp)
    needed = wanted.recipe.noise.needs_neighbours
    neighbours = Neighbours.open(wanted.prompts, bank) if needed and bank is not None else None
    pretrain(PromptStore(wanted.prompts), bank, neighbours, wanted.recipe, wanted.folder, device)


def run_trial(trial: Trial, speeds: Path, device: str) -> list[dict[str, Any]]:
    """Train and test; returns one row for each test set, with the columns of :mod:`~dptr.trainer.ablation.rows`.

    ``speeds`` is the folder in which what a step takes is kept.

    Raises:
        UserError: training fails, or there is no time left for it.
    """
    started_from = None if trial.start is None else Run.load(trial.start)
    if trial.zero_label:
        recognizer, trained = _as_it_started(trial, started_from, device), {"steps": 0, "seconds": 0.0, "crops": 0}
    else:
        recognizer, trained = _fine_tuned(trial, speeds, device)
    common = {
        "arm": trial.arm,
        "seed": trial.seed,
        "run": trial.key,
        "start": trial.start_kind,
        "protocol": trial.protocol,
        **trained,
        "pretrain_steps": sum(run.step() for run in _before(trial)),
        "pretrain_seconds": sum(_run_seconds(run) for run in _before(trial)),
        "parameters": sum(parameter.numel() for parameter in recognizer.parameters()),
    }
    rows = []
    for name, path in trial.tests.items():
        images = WordImages.open_as_written([path])
        read = read_word_images(recognizer, images, torch.device(device))
        judgement = judged(read, name, trial.protocol)
        rows.append({**common, "test": name, "test_sha256": fingerprint(images), **judgement})
    return rows


def _fine_tuned(trial: Trial, speeds: Path, device: str) -> tuple[Recognizer, dict[str, Any]]:
    """Train as the arm says; return the recogniser, and what its training took."""
    recipe = trial.recipe if trial.budget is None else _within(trial, speeds, device)
    _train(trial, recipe, trial.folder, device)
    run = Run.load(trial.folder)
    crops, seconds = len(open_data(trial.data, trial.charset, recipe)), training_seconds(trial.folder, recipe.finetune)
    recognizer = load_recognizer(run, device)
    if run.untrained() and isinstance(recognizer.encoder, ClipEncoder):
        remember_tests(recognizer.encoder)
    return recognizer, {"steps": run.step(), "seconds": seconds, "crops": crops}


def _as_it_started(trial: Trial, start: Run | None, device: str) -> Recognizer:
    """Return the start behind the image tower of its CLIP: it was trained on no labelled crop."""
    folder = trial.encoder_model
    if start is None or folder is None:
        raise ValueError("an arm without labels has a start and a CLIP")
    recognizer = zero_label_recognizer(start, lambda _: folder, device)
    if isinstance(recognizer.encoder, ClipEncoder):
        remember_tests(recognizer.encoder)
    return recognizer


def training_seconds(run: Path, settings: TrainingSettings) -> float:
    """Return how long a run's steps took, without validation and without what a kill threw away."""
    path, seconds, before = run / TIMINGS_FILE, 0.0, 0
    for timing in _speeds(path) if path.is_file() else ():
        rows = (timing["step"] - before) * settings.batch_size * settings.accumulate
        seconds += rows / timing["rows_per_second"]
        before = timing["step"]
    return seconds


def _speeds(timings: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's log that say how fast its steps were; others time its checkpoints."""
    lines = [json.loads(line) for line in timings.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "rows_per_second" in line]


def judged(read: ReadImages, test: str, protocol: str) -> dict[str, Any]:
    """Return a row's figures of a test set, and of each image that counts whether it was read right."""
    charset, texts = Charset.named(protocol), [reading.text for reading in read.readings]
    total = field_score(read.truths, texts, charset).score
    if total is None:
        raise UserError(f"no word of {test} counts with {protocol} characters", "Name others")
    single = [field_score([truth], [text], charset).score for truth, text in zip(read.truths, texts, strict=True)]
    counted = [(key, score.accuracy == 1) for key, score in zip(read.keys, single, strict=True) if score is not None]
    return {
        "words": total.words,
        "accuracy": total.accuracy,
        "one_minus_ned": total.one_minus_ned,
        "images": [key for key, _ in counted],
        "right": [right for _, right in counted],
    }


def _train(trial: Trial, recipe: Recipe, folder: Path, device: str) -> None:
    images = open_data(trial.data, trial.charset, recipe)
    validation = None if trial.validation is None else open_validation(trial.validation, trial.charset, recipe)
    start = None if trial.start is None else Run.load(trial.start)
    charset = charset_named(trial.charset)
    model = trial.encoder_model
    finetune(images, charset, start, recipe, folder, device, encoder_model=model, validation=validation)


def _before(trial: Trial) -> list[Run]:
    """The runs that a trial came through, the one that it starts from last."""
    return [Run.load(folder) for folder in (*trial.earlier, trial.start) if folder is not None]


def _run_seconds(run: Run) -> float:
    return training_seconds(run.folder, getattr(run.recipe, run.kind))


def _within(trial: Trial, speeds: Path, device: str) -> Recipe:
    """Turn a budget of seconds into steps, so that the schedule fits and a killed run goes on to the same bits.

    An arm's speed is measured once, with its first seed, and kept: all its seeds take the same number of steps.
    """
    if trial.budget is None:
        raise ValueError("no budget")
    seconds, in_all = trial.budget
    before = sum(_run_seconds(run) for run in _before(trial)) if in_all else 0.0
    a_step = _seconds_a_step(trial, speeds, device)
    steps = int((seconds - before) / a_step)
    if steps < 1:
        taken = f"a step takes {a_step:.2g} s" + (f", pre-training took {before:.0f} s" if before else "")
        raise UserError(f"{seconds:g} seconds are too few: {taken}", "Give more, or make pre-training shorter")
    return trial.recipe.replace("finetune", steps=steps)


def _seconds_a_step(trial: Trial, speeds: Path, device: str) -> float:
    fixed = trial.recipe.replace("finetune", seed=0, steps=1)
    sizes = {name: data.crops for name, data in trial.data.items()}
    key = key_of(recipe_to_toml(fixed), sizes, device)
    path = speeds / f"{key}.json"
    if not path.is_file():
        folder = speeds / f"{key}-{trial.seed}"
        third = _TIMED_STEPS // 3
        often = {"log_every": third, "validate_every": _TIMED_STEPS, "checkpoint_every": _TIMED_STEPS}
        recipe = trial.recipe.replace("finetune", steps=_TIMED_STEPS, **often)
        shutil.rmtree(folder, ignore_errors=True)
        _train(trial, recipe, folder, device)
        lines = _speeds(folder / TIMINGS_FILE)[1:]
        rate = sum(line["rows_per_second"] for line in lines) / len(lines)
        write_json(path, {"seconds_a_step": recipe.finetune.batch_size * recipe.finetune.accumulate / rate})
        shutil.rmtree(folder, ignore_errors=True)
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds_a_step"])
