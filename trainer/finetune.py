"""Stage 3: couple a pre-trained decoder to an image encoder through the Feature Merge Unit, on labelled word images."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dptr.cache.charset import Charset
from dptr.cache.errors import UserError
from dptr.cache.progress import note
from dptr.cache.word_images.augmentation import augment
from dptr.cache.word_images.dataset import UnreadableImage, WordImages, preprocess, split
from dptr.trainer.data.batch_order import BatchOrder
from dptr.trainer.evaluate import read_word_images
from dptr.trainer.metrics import score
from dptr.trainer.model.coverage import Coverage, load_weights
from dptr.trainer.model.decoders.base import Targets
from dptr.trainer.model.encoders.base import PretrainedEncoder
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.training import loop, runs
from dptr.trainer.training.recipe import Recipe
from dptr.trainer.training.settings import Settings
from dptr.trainer.training.trackers import Tracker, observer


@dataclass(frozen=True)
class FinetuneSummary:
    """What a fine-tuning run came to; ``coverage`` is None for a decoder that starts from nothing.

    ``portrait`` names the images taller than wide that training met; they are read like any other.
    """

    out: Path
    rows: int
    computed: int
    quarantined: int
    steps: int
    seconds: float
    metrics: dict[str, float]
    coverage: Coverage | None
    portrait: list[str]


@dataclass(frozen=True)
class ImageBatch:
    """Preprocessed word images (batch, 3, height, width) uint8, with their labels.

    ``unreadable`` says what had to be left out and why, ``portrait`` names images taller than wide.
    """

    images: Tensor
    targets: Targets
    unreadable: tuple[str, ...] = ()
    portrait: tuple[str, ...] = ()


@dataclass
class Oddities:
    """What was odd about the images that training met, each named once however often it is drawn."""

    unreadable: set[str] = field(default_factory=set)
    portrait: set[str] = field(default_factory=set)

    def take(self, batch: ImageBatch) -> None:
        """Count a batch's oddities and name those that are new."""
        for line in sorted(set(batch.unreadable) - self.unreadable):
            note(f"left out: {line}")
        self.unreadable.update(batch.unreadable)
        self.portrait.update(batch.portrait)


class ImageBatches:
    """Batch number -> :class:`ImageBatch`; a pure function of the recipe's seed and the number."""

    def __init__(self, images: WordImages, charset: Charset, recipe: Recipe, size: tuple[int, int]) -> None:
        settings = recipe.finetune
        weights = mixing_weights(images, settings.mix)
        self._order = BatchOrder(np.arange(len(images)), None, settings.batch_size, settings.seed, weights)
        self._images = images
        self._charset = charset
        self._seed = settings.seed
        self._strength = settings.augmentation
        self._size = size

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return self._order.batches_per_epoch

    def __call__(self, number: int) -> ImageBatch:
        """Return batch ``number``, counted from 0 through all epochs."""
        pixels: list[NDArray[np.uint8]] = []
        labels: list[str] = []
        unreadable: list[str] = []
        portrait: list[str] = []
        for row in self._order.rows_of(number).tolist():
            try:
                image = self._images.image(row)
            except UnreadableImage as error:
                unreadable.append(str(error))
                continue
            if image.height > image.width:
                portrait.append(self._images.samples[row].key)
            if self._strength > 0:
                image = augment(image, np.random.default_rng((self._seed, 5, number, row)), self._strength)
            pixels.append(preprocess(image, *self._size))
            labels.append(self._images.samples[row].label)
        if not pixels:
            raise UserError(
                f"batch {number} has no readable image: {unreadable[0]}", "Check the data with `dptr evaluate`"
            )
        targets = Targets.of(labels, self._charset)
        return ImageBatch(torch.from_numpy(np.stack(pixels)), targets, tuple(unreadable), tuple(portrait))


def finetune(
    images: WordImages,
    charset: Charset,
    start: runs.Trained | None,
    recipe: Recipe,
    out: Path,
    device: str | torch.device = "cpu",
    track: Tracker | None = None,
    encoder_model: Path | None = None,
    validation: WordImages | None = None,
) -> FinetuneSummary:
    """Train a recogniser, from a pre-trained decoder, a recogniser or (None) from nothing; goes on where it stopped.

    ``validation`` is what checkpoints are chosen by; without it, that is ``finetune.validation_share`` of ``images``.
    ``encoder_model`` is the folder whose weights a ``clip:`` or ``hf:`` encoder starts from.

    Raises:
        UserError: too few images, or none could be read. DamagedStore: ``out`` holds another run.
    """
    started = time.monotonic()
    training, given = images, validation
    if validation is None:
        training, validation = split(images, recipe.finetune.validation_share, recipe.finetune.seed)
    device = torch.device(device)
    torch.manual_seed(recipe.finetune.seed)
    memory_dim = start.memory_dim if start else recipe.decoder.memory_dim or recipe.decoder.dim
    recognizer = Recognizer(recipe, charset, memory_dim)
    if isinstance(recognizer.encoder, PretrainedEncoder) and encoder_model is not None:
        recognizer.encoder.load(encoder_model)
    coverage = None
    if start is not None:
        part = recognizer.decoder if start.kind == "pretrain" else recognizer
        coverage = load_weights(part, start.weights(), start.charset, charset)
        note(f"{'decoder' if start.kind == 'pretrain' else 'all'} from {start.name}: " + "; ".join(coverage.lines()))
    recognizer.to(device)
    run = runs.start_or_continue(out, "finetune", recipe, charset, memory_dim, data_identity(images, start, given))
    batches = ImageBatches(training, charset, recipe, recognizer.image_size)
    oddities = Oddities()

    def loss(batch: ImageBatch) -> Tensor:
        oddities.take(batch)
        return recognizer.loss(batch.images.to(device), batch.targets.to(device))

    task = loop.Task(
        model=recognizer,
        batch=batches,
        loss=loss,
        validate=lambda model: _validate(model, validation, device),
        rows=lambda batch: len(batch.images),
        groups=parameter_groups(recognizer, recipe, batches.per_epoch),
        observers=[observer(track, out)] if track else [],
    )
    steps_before = run.step()
    state = loop.run(out, task, recipe.finetune, device)
    return FinetuneSummary(
        out=out,
        rows=len(training),
        computed=(state.step - steps_before) * recipe.finetune.batch_size * recipe.finetune.accumulate,
        quarantined=sum(images.refused.values()) + len(oddities.unreadable),
        steps=state.step,
        seconds=time.monotonic() - started,
        metrics=state.metrics,
        coverage=coverage,
        portrait=sorted(oddities.portrait),
    )


def data_identity(
    images: WordImages, start: runs.Trained | None, validation: WordImages | None = None
) -> dict[str, Any]:
    """What a run remembers of its data: fingerprints of the images, and where its weights came from."""
    identity: dict[str, Any] = {"images": _fingerprint(images), "from": start and [start.name, start.data]}
    return identity if validation is None else {**identity, "validation": _fingerprint(validation)}


def parts_of(start: runs.Trained | None) -> dict[str, Settings]:
    """Return the recipe's sections that weights to start from fix: the decoder's, and those of a recogniser's parts."""
    if start is None:
        return {}
    names = ("decoder",) if start.kind == "pretrain" else ("decoder", "encoder", "fmu")
    return {name: getattr(start.recipe, name) for name in names}


def _fingerprint(images: WordImages) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join(f"{sample.key}\t{sample.label}" for sample in images.samples).encode())
    return {"rows": len(images), "sha256": digest.hexdigest()}


def mixing_weights(images: WordImages, mix: str) -> NDArray[np.float64] | None:
    """Return each sample's weight, shape (samples,), so that data sets are drawn in the proportions of ``mix``.

    None without a mix: all are drawn alike.

    Raises:
        UserError: ``mix`` is not one number above zero for each data set that has samples.
    """
    if not mix:
        return None
    sets = np.array([sample.data_set for sample in images.samples])
    sizes = np.bincount(sets)
    try:
        shares = np.array([float(part) for part in mix.split(",")])
    except ValueError as error:
        raise UserError(f"finetune.mix = {mix!r} is not numbers between commas", 'For example: "3,1"') from error
    if len(shares) != len(sizes) or not (shares > 0).all():
        raise UserError(
            f"finetune.mix = {mix!r} does not fit {len(sizes)} data sets", "Give each one number above zero"
        )
    weights: NDArray[np.float64] = (shares / np.maximum(sizes, 1))[sets]
    return weights


def parameter_groups(recognizer: Recognizer, recipe: Recipe, batches_per_epoch: int) -> list[loop.ParameterGroup]:
    """Group the recogniser's parameters by part, each with its learning-rate factor and how long it stays frozen."""
    settings = recipe.finetune
    parts: dict[str, tuple[list[torch.nn.Parameter], float]] = {
        "encoder": (list(recognizer.encoder.parameters()), settings.encoder_lr_scale),
        "fmu": (list(recognizer.fmu.parameters()), settings.fmu_lr_scale),
        "decoder": (list(recognizer.decoder.parameters()), settings.decoder_lr_scale),
    }
    if recognizer.column_head is not None:
        parts["encoder"][0].extend(recognizer.column_head.parameters())
    epochs = _frozen_epochs(settings.freeze, list(parts))
    steps = {part: round(epochs[part] * batches_per_epoch / settings.accumulate) for part in parts}
    if all(steps[part] for part, (tensors, _) in parts.items() if tensors):
        raise UserError(f"finetune.freeze = {settings.freeze!r} keeps every part as it came", "Leave one to learn")
    return [loop.ParameterGroup(tensors, rate, steps[part]) for part, (tensors, rate) in parts.items()]


def _frozen_epochs(freeze: str, parts: list[str]) -> dict[str, float]:
    epochs = dict.fromkeys(parts, 0.0)
    for word in freeze.replace(",", " ").split():
        part, colon, count = word.partition(":")
        if part not in parts or not colon or not count.replace(".", "", 1).isdecimal():
            raise UserError(
                f"finetune.freeze = {freeze!r} is not understood at {word!r}",
                f"Give a part ({', '.join(parts)}) and how many epochs, such as decoder:5",
            )
        epochs[part] = float(count)
    return epochs


def _validate(model: torch.nn.Module, images: WordImages, device: torch.device) -> dict[str, float]:
    """Read the validation images, compared as they stand and, like the field's 36-character protocol, case aside."""
    if not isinstance(model, Recognizer):
        raise TypeError(f"{type(model).__name__} is not a recogniser")
    read = read_word_images(model, images, device)
    texts = [reading.text for reading in read.readings]
    exact, folded = score(read.truths, texts), score(read.truths, texts, Charset.named("36"))
    return {
        "score": exact.accuracy,
        "accuracy": exact.accuracy,
        "accuracy_36": folded.accuracy,
        "one_minus_ned": exact.one_minus_ned,
    }
