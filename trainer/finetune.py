"""Stage 3: train an image encoder, the Feature Merge Unit and a pre-trained decoder on labelled word images.

Weights to start from need not fit exactly: a changed charset keeps every unit that both sides have, a longer label the
positions that both have, higher images how a column of them is merged. All else must fit or is reported, because a
decoder that starts from random weights unnoticed is taken for a bad recipe.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dptr.cache.crops.dataset import WordImages, split, without_overlap
from dptr.cache.errors import UserError
from dptr.cache.file_names import SAFETENSORS
from dptr.cache.progress import note
from dptr.cache.stores.files import sha256_of
from dptr.cache.text.charset import Charset
from dptr.trainer.choices import Tracker
from dptr.trainer.data.image_batches import ImageBatches, Oddities
from dptr.trainer.data.image_features import StoredBatches, StoredCrops, require_one_kind
from dptr.trainer.evaluate import keep_rejections, read_stored_crops, read_word_images
from dptr.trainer.metrics import field_score, score
from dptr.trainer.model.encoders import build_encoder
from dptr.trainer.model.encoders.base import Encoder, GivenTokens, PretrainedEncoder
from dptr.trainer.model.encoders.clip import PREFIX, require_weights, weights_hash
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.recipe import EncoderSettings, FmuSettings, Recipe, Settings
from dptr.trainer.training import loop, processes, runs
from dptr.trainer.training.checkpoint import checkpoint_folder, find_checkpoint, load_state

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
    batches: ImageBatches | StoredBatches
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
        track=track,
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
    runs.require_recogniser(recogniser)
    return recogniser.recipe.encoder.model_copy(update={"image_widths": ""})


def parts_of(start: runs.Trained | None, encoder_is_named: bool = False) -> dict[str, Settings]:
    """Return the recipe's sections that weights to start from fix: the decoder's, and those of a recogniser's parts.

    A decoder of pooled vectors starts with its CLIP's image encoder unless another encoder is named, so it starts from
    its zero-shot accuracy. A decoder of columns takes columns, without an FMU.
    """
    if start is None:
        return {}
    recipe = start.recipe
    fixed: dict[str, Settings] = {"decoder": recipe.decoder, "memory": recipe.memory}
    if start.kind != "pretrain":
        return fixed | {"encoder": recipe.encoder, "fmu": recipe.fmu}
    if recipe.memory.kind == "pooled" and start.clip and not encoder_is_named:
        return fixed | {"encoder": EncoderSettings(kind=PREFIX + start.clip)}
    return fixed | ({"fmu": FmuSettings(kind="none")} if recipe.memory.kind == "columns" else {})


def require_clip_of(start: runs.Trained | None, recipe: Recipe, model: Path | None) -> None:
    """Check that an encoder in ``model`` that was chosen for the pre-training run to start from is that run's own.

    Raises:
        DamagedStore: the CLIP of that name is another one by now.
    """
    if not isinstance(start, runs.Run) or start.recipe.memory.kind != "pooled" or model is None:
        return
    if recipe.encoder.kind == PREFIX + start.clip:
        require_weights(model, start.clip, start.clip_weights, str(start.folder))


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


#: The convolutional encoder's weights, (to, from, rows, 1), that make one token of the rows of a column.
_COLUMN_MERGE = "encoder.merge.0.weight"


@dataclass
class Coverage:
    """Report of loading weights.

    Attributes:
        loaded: complete tensors. partial: tensor -> loaded part. missing: expected but not there.
        extra: there but not expected. mismatched: tensor -> the two shapes.
    """

    loaded: list[str] = field(default_factory=list)
    partial: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    mismatched: dict[str, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Return the report, a line for each kind of outcome that occurred."""
        lines = [f"{len(self.loaded)} tensors loaded"]
        lines += [f"loaded in part: {name} ({what})" for name, what in self.partial.items()]
        lines += [f"left as initialised, shapes differ: {name} ({what})" for name, what in self.mismatched.items()]
        if self.missing:
            lines.append(f"left as initialised, not in the file: {', '.join(self.missing)}")
        if self.extra:
            lines.append(f"in the file but not in the model: {', '.join(self.extra)}")
        return lines


def load_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], old: Charset | None = None, new: Charset | None = None
) -> Coverage:
    """Copy ``tensors`` into ``model`` where names and shapes fit, carrying characters and positions over.

    Args:
        model: a decoder, or a module whose part ``decoder`` is one.
        tensors: the other model's state dict.
        old, new: the charsets of the two, when characters may have to be carried over.
    """
    coverage = Coverage(extra=sorted(set(tensors) - set(model.state_dict())))
    with torch.no_grad():
        for name, target in model.state_dict().items():
            source = tensors.get(name)
            if source is None:
                coverage.missing.append(name)
            elif old is not None and new is not None and _is_per_character(name) and not old.same_units_as(new):
                shared = _carry_characters(target, source, name, old, new)
                coverage.partial[name] = f"{shared} of {len(new.characters)} characters"
            elif source.shape == target.shape:
                target.copy_(source)
                coverage.loaded.append(name)
            elif name.endswith("positions") and source.shape[1:] == target.shape[1:]:
                count = min(len(source), len(target))
                target[:count].copy_(source[:count])
                coverage.partial[name] = f"{count} of {len(target)} positions"
            elif name.endswith(_COLUMN_MERGE) and source.shape[:2] == target.shape[:2]:
                target.copy_(_stretched(source.float(), target.shape[2]))
                coverage.partial[name] = f"{source.shape[2]} rows stretched to {target.shape[2]}"
            else:
                coverage.mismatched[name] = f"{tuple(source.shape)} in the file, {tuple(target.shape)} in the model"
    return coverage


def _stretched(weights: Tensor, rows: int) -> Tensor:
    """Spread what is summed over the rows of a column over as many as a higher or lower image has."""
    before = weights.shape[2]
    spread = F.interpolate(weights.squeeze(3), size=rows, mode="linear", align_corners=True)
    return spread.unsqueeze(3) * (before / rows)


def _is_per_character(name: str) -> bool:
    # A recogniser's decoder, or the one within a decoder of pooled vectors.
    part = name.rpartition("decoder.")[2]
    return part in ("head.weight", "head.bias", "embedding.weight")


def _carry_characters(target: Tensor, source: Tensor, name: str, old: Charset, new: Charset) -> int:
    """Copy the rows of the end, begin, padding and every shared character; return how many characters are shared."""
    if source.shape[1:] != target.shape[1:]:
        return 0
    target[new.end].copy_(source[old.end])
    if "embedding" in name:
        target[new.begin].copy_(source[old.begin])
        target[new.padding].copy_(source[old.padding])
    row_of = {unit: row for row, unit in enumerate(old.characters, start=1)}
    shared = [(row, row_of[unit]) for row, unit in enumerate(new.characters, start=1) if unit in row_of]
    if shared:
        rows, rows_of_old = torch.tensor(shared).T
        target[rows] = source[rows_of_old].to(target)  # half precision, where it was exported so
    return len(shared)
