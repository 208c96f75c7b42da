"""Stage 3: train an image encoder, the Feature Merge Unit and a pre-trained decoder on labelled word images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dptr.cache.crops.dataset import WordImages, split, without_overlap
from dptr.cache.errors import UserError
from dptr.cache.file_names import SAFETENSORS
from dptr.cache.progress import note
from dptr.cache.stores.files import sha256_of
from dptr.cache.text.charset import Charset
from dptr.trainer.choices import Tracker
from dptr.trainer.data.image_batches import CropBatches, ImageBatches, Oddities
from dptr.trainer.data.image_features import StoredBatches, StoredCrops, require_one_kind
from dptr.trainer.evaluate import read_stored_crops, read_word_images
from dptr.trainer.metrics import field_score, score
from dptr.trainer.model.encoders import build_encoder
from dptr.trainer.model.encoders.base import Encoder, GivenTokens, PretrainedEncoder
from dptr.trainer.model.encoders.clip import PREFIX, weights_hash
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.model.weight_loading import Coverage, load_weights
from dptr.trainer.predictions import keep_rejections
from dptr.trainer.recipe import EncoderSettings, FmuSettings, Recipe, Settings
from dptr.trainer.training import loop, processes, runs, step_log
from dptr.trainer.training.checkpoint import checkpoint_folder, find_checkpoint, load_state
from dptr.trainer.zero_shot import require_its_clip

#: What the names of a recogniser's encoder's weights begin with.
_ENCODER = "encoder."


@dataclass(frozen=True)
class FinetuneSummary(runs.TrainingSummary):
    """Result of a fine-tuning run; ``coverage`` is None for a decoder trained from scratch.

    ``portrait`` names the images taller than wide; they are read like any other.
    """

    coverage: Coverage | None
    portrait: list[str]


def finetune(
    images: WordImages,
    charset: Charset,
    start: runs.Trained | None,
    recipe: Recipe,
    out: Path,
    device: str | torch.device = "cpu",
    track: Tracker | None = None,
    encoder_model: Path | runs.Trained | None = None,
    validation: WordImages | None = None,
    validate: Callable[[torch.nn.Module], dict[str, float]] | None = None,
) -> FinetuneSummary:
    """Train a recogniser, from a pre-trained decoder, a recogniser or (None) from scratch; resumes where it stopped.

    ``validation`` is what checkpoints are chosen by; without it, that is ``finetune.validation_share`` of ``images``.
    With ``validate``, which returns the metrics of a model, training takes all ``images``.
    ``encoder_model`` is the folder whose weights a ``clip:`` or ``hf:`` encoder starts from, or the recogniser whose
    encoder is taken. With ``images`` from a store that encoder does not run: FMU and decoder learn from what it gave,
    and its weights are saved with the run.

    Raises:
        UserError: too few images, or none could be read.
        DamagedStore: ``out`` holds another run, or a store is of another encoder.
    """
    started = time.monotonic()
    if recipe.memory.kind == "pooled":
        images, validation = _pooled(images), None if validation is None else _pooled(validation)
    training, given = images, validation
    if validation is not None:
        require_one_kind(images, validation)
        training = without_overlap(images, validation)
    elif validate is None:
        training, validation = split(images, recipe.finetune.validation_share, recipe.finetune.seed)
    device = torch.device(device)
    torch.manual_seed(recipe.finetune.seed)
    charset = runs.charset_of_run(charset, recipe.decoder, start)
    memory_dim = start.memory_dim if start else recipe.decoder.memory_dim or recipe.decoder.dim
    encoder, untrained = _encoder(images, recipe, encoder_model)
    recognizer = Recognizer(recipe, charset, memory_dim, encoder)
    coverage = None
    if start is not None:
        part = recognizer.decoder if start.kind == "pretrain" else recognizer
        coverage = load_weights(part, _weights_of(start, images), start.charset, charset)
        note(f"{'decoder' if start.kind == 'pretrain' else 'weights'} of {start.name}: " + "; ".join(coverage.lines()))
    recognizer.to(device)
    identity = data_identity(images, start, given, encoder_model)
    with processes.first_before_others():
        run = runs.start_or_continue(out, "finetune", recipe, charset, memory_dim, identity)
        if processes.is_first():
            run.keep_untrained(untrained)
            keep_rejections(out, images)
    batches: CropBatches
    if isinstance(training, StoredCrops):
        batches = StoredBatches(training, charset, recipe)
    else:
        batches = ImageBatches(training, charset, recipe, recognizer.image_size[0], recognizer.encoder.widths)
    oddities = Oddities()

    task = loop.Task(
        model=recognizer,
        batch=batches,
        loss=lambda batch: recognizer.loss(batch.images.to(device), batch.targets),
        notice=oddities.take,
        validate=validate or partial(validated, images=validation or training, device=device),
        groups=parameter_groups(recognizer, recipe),
        longest_label=recipe.decoder.max_label_length,
        observers=step_log.observers(track, out),
        fixed_statistics=recipe.finetune.batch_norm == "fixed",
        starts_trained=start is not None and start.kind == "finetune" and validate is None,
        require_finite=batches.require_finite,
    )
    steps_before = run.step()
    state = loop.run(out, task, recipe.finetune, device)
    return FinetuneSummary(
        out=out,
        rows=len(training),
        computed=(state.step - steps_before) * recipe.finetune.batch_size * recipe.finetune.accumulate,
        quarantined=images.rejected.total + len(processes.of_all(oddities.unreadable)),
        steps=state.step,
        seconds=time.monotonic() - started,
        metrics=_metrics_of_best(out),
        coverage=coverage,
        portrait=sorted(processes.of_all(oddities.portrait)),
    )


def _metrics_of_best(run: Path) -> dict[str, float]:
    best = find_checkpoint(checkpoint_folder(run, "best"))
    metrics: dict[str, float] = load_state(best, only=())["metrics"] if best else {}
    return metrics


def _encoder(
    images: WordImages, recipe: Recipe, model: Path | runs.Trained | None
) -> tuple[Encoder, dict[str, Tensor]]:
    """Return the encoder to train with, and the weights of the recogniser that are not trained."""
    encoder = build_encoder(recipe.encoder)
    if isinstance(model, Path):
        if isinstance(encoder, PretrainedEncoder):
            encoder.load(model)
    elif model is not None:
        encoder.load_state_dict(_encoder_weights(model.weights()))
        note(f"encoder from {model.name}")
    if not isinstance(images, StoredCrops):
        return encoder, {}
    weights = encoder.state_dict()
    images.require_encoder(weights_hash(weights), recipe.encoder.kind)
    given = GivenTokens(encoder.dim, encoder.size, encoder.grid)
    return given, {f"{_ENCODER}{name}": tensor for name, tensor in weights.items()}


def _pooled(images: WordImages) -> WordImages:
    """Let stored crops come with their pooled vectors; pictures stay what they are."""
    return replace(images, pooled=True) if isinstance(images, StoredCrops) else images


def _weights_of(start: runs.Trained, images: WordImages) -> dict[str, Tensor]:
    """Return the weights to start from; for a store those behind the encoder, which must be its own encoder."""
    weights = start.weights()
    if start.kind == "pretrain" or not isinstance(images, StoredCrops):
        return weights
    images.require_encoder(weights_hash(_encoder_weights(weights)), start.name)
    return {name: tensor for name, tensor in weights.items() if not name.startswith(_ENCODER)}


def _encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(_ENCODER): tensor for name, tensor in weights.items() if name.startswith(_ENCODER)}


def data_identity(
    images: WordImages,
    start: runs.Trained | None,
    validation: WordImages | None = None,
    encoder_model: Path | runs.Trained | None = None,
) -> dict[str, Any]:
    """Return what a run saves of all that it reads: fingerprints of the crops, and hashes of the weights taken."""
    taken_from = start and {"weights": start.weights_hash(), "data": start.data}
    identity: dict[str, Any] = {"images": images.identity(), "from": taken_from}
    if validation is not None:
        identity["validation"] = validation.identity()
    if isinstance(encoder_model, Path):
        identity["encoder"] = {path.name: sha256_of(path) for path in sorted(encoder_model.glob(f"*{SAFETENSORS}"))}
    elif encoder_model is not None:
        identity["encoder"] = encoder_model.weights_hash()
    return identity


def encoder_of(recogniser: runs.Trained) -> EncoderSettings:
    """Return the settings with which a recogniser's encoder serves another: at one width, which any FMU takes."""
    if recogniser.kind != "finetune":
        raise UserError(f"{recogniser.name} has no image encoder", "Name a run of `dptr finetune`, or a model file")
    return recogniser.recipe.encoder.model_copy(update={"image_widths": ""})


def parts_of(start: runs.Trained | None, encoder_is_named: bool = False) -> dict[str, Settings]:
    """Return the recipe's sections that weights to start from fix: the decoder's, and those of a recogniser's parts.

    A decoder of pooled vectors starts with its CLIP's image encoder unless another encoder is named, so it starts from
    its zero-shot accuracy. A decoder of columns takes columns, without an FMU.
    """
    if start is None:
        return {}
    if start.kind != "pretrain":
        return parts_of_recogniser(start.recipe)
    seen = seen_through(start.recipe.memory.kind, start.clip, encoder_is_named)
    return {"decoder": start.recipe.decoder, "memory": start.recipe.memory, **seen}


def parts_of_recogniser(recipe: Recipe) -> dict[str, Settings]:
    """Return the sections of a recogniser's recipe that its weights fix."""
    return {name: getattr(recipe, name) for name in ("decoder", "memory", "encoder", "fmu")}


def seen_through(memory: str, clip: str, encoder_is_named: bool = False) -> dict[str, Settings]:
    """Return the sections of a recipe that follow from what a decoder learnt to read: see :func:`parts_of`."""
    if memory == "pooled" and clip and not encoder_is_named:
        return {"encoder": EncoderSettings(kind=PREFIX + clip)}
    return {"fmu": FmuSettings(kind="none")} if memory == "columns" else {}


def require_clip_of(start: runs.Trained | None, recipe: Recipe, model: Path | None) -> None:
    """Check that a encoder in ``model`` that was chosen for the pre-training run to start from is that run's own.

    Raises:
        DamagedStore: the CLIP of that name is another one by now.
    """
    if not isinstance(start, runs.Run) or start.recipe.memory.kind != "pooled" or model is None:
        return
    if recipe.encoder.kind == PREFIX + start.clip:
        require_its_clip(start, model)


def parameter_groups(recognizer: Recognizer, recipe: Recipe) -> list[loop.ParameterGroup]:
    """Group the recogniser's parameters by part, each with its learning-rate factor.

    Raises:
        UserError: all parts are frozen.
    """
    settings = recipe.finetune
    encoder = list(recognizer.encoder.parameters())
    if recognizer.ctc_head is not None:
        encoder.extend(recognizer.ctc_head.parameters())
    groups = [
        loop.ParameterGroup(encoder, settings.encoder_lr_scale),
        loop.ParameterGroup(list(recognizer.fmu.parameters()), settings.fmu_lr_scale),
        loop.ParameterGroup(list(recognizer.decoder.parameters()), settings.decoder_lr_scale),
    ]
    if not any(group.lr_scale for group in groups if group.parameters):
        raise UserError("all parts are frozen: their learning-rate factors are 0", "Set one of finetune.*_lr_scale")
    return groups


def validated(model: torch.nn.Module, images: WordImages, device: torch.device) -> dict[str, float]:
    """Read the validation images, compared as they stand, and by the field's 36-character protocol where it has words.

    Of labels in another script than Latin that protocol leaves nothing to compare, hence its own number of words.
    """
    if not isinstance(model, Recognizer):
        raise TypeError(f"{type(model).__name__} is not a recogniser")
    if isinstance(images, StoredCrops):
        read = read_stored_crops(model, images, device)
    else:
        read = read_word_images(model, images, device)
    texts = [prediction.text for prediction in read.predictions]
    exact, folded = (
        score(read.ground_truths, texts, units=read.units),
        field_score(read.ground_truths, texts, Charset.named("36")),
    )
    return {
        # Of two checkpoints of equal accuracy, the one with the higher 1-NED is better.
        "score": exact.accuracy + 1e-3 * exact.one_minus_ned,
        "accuracy": exact.accuracy,
        **({"accuracy_36": folded.score.accuracy, "words_36": folded.words} if folded.score else {}),
        "one_minus_ned": exact.one_minus_ned,
    }
