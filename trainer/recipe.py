"""A recipe fixes a training run: every key with its type, default and range, strict TOML to typed sections.

A class is a section of the file. Settings come from the defaults here, then the recipe file, then ``--set
section.key=value``. An unknown key is an error that names the nearest known one: a misspelt key would otherwise train
for a night with the default.
"""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from dptr.cache.errors import UserError
from dptr.trainer.choices import Distortions, FmuKind, FmuStart, NoiseDraw, Refinement, Sampling

_BUNDLED = Path(__file__).resolve().parents[1] / "recipes"
#: Beyond these no computer has the memory; a typing mistake is rejected before memory is allocated.
WIDEST = 16_384
_DEEPEST, _LARGEST_IMAGE, _LARGEST_COUNT = 256, 8_192, 1_000_000_000


class Settings(BaseModel):
    """A section of a recipe: immutable, without unknown keys, all numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DecoderSettings(Settings):
    """The decoder that stages 2 and 3 share."""

    kind: str = Field(default="parseq", description="parseq, nrtr, parallel, ctc or a registered decoder")
    memory_dim: int = Field(
        default=0, ge=0, le=WIDEST, description="width of the memory; 0: the store's width, or dim without a store"
    )
    dim: int = Field(default=192, ge=1, le=WIDEST, description="width")
    heads: int = Field(default=6, ge=1, le=_DEEPEST, description="attention heads")
    layers: int = Field(default=1, ge=1, le=_DEEPEST, description="layers")
    feed_forward: int = Field(default=768, ge=1, le=4 * WIDEST, description="width of the feed-forward layers")
    dropout: float = Field(default=0.1, ge=0, lt=1)
    permutations: int = Field(
        default=6, ge=1, le=1000, description="parseq: reading orders per label, mirrored ones included"
    )
    refinements: int = Field(default=1, ge=0, le=100, description="parseq: refinement passes at reading")
    refinement: Refinement = Field(
        default="cloze", description="parseq: attention mask of refinement; shared: as in the authors' code"
    )
    max_label_length: int = Field(default=25, ge=1, le=1000, description="maximum label length")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        _require_multiple("decoder", self.dim, self.heads)
        return self


class EncoderSettings(Settings):
    """The image encoder: ViT, convolutions, or a model's."""

    kind: str = Field(
        default="vit",
        description="vit, convolution, clip:ID (image encoder of a CLIP) or hf:ID (vision model of transformers)",
    )
    config: str = Field(
        default="", description="configuration of a clip: or hf: encoder, filled in when the recipe is resolved"
    )
    stem: Literal["linear", "convolution"] = Field(default="linear", description="vit: patch embedding")
    dim: int = Field(default=192, ge=1, le=WIDEST, description="width")
    heads: int = Field(default=3, ge=1, le=_DEEPEST, description="vit: attention heads")
    layers: int = Field(default=6, ge=1, le=_DEEPEST, description="vit: layers")
    channels: int = Field(default=32, ge=1, le=WIDEST, description="convolution: channels of the first stage")
    image_height: int = Field(default=32, ge=2, le=_LARGEST_IMAGE, description="pixels")
    image_width: int = Field(default=128, ge=2, le=_LARGEST_IMAGE, description="pixels")
    image_widths: str = Field(
        default="",
        description="convolution: further widths, comma-separated; drawn per batch, chosen by aspect at reading",
    )
    patch_height: int = Field(default=4, ge=1, le=_LARGEST_IMAGE, description="vit: pixels")
    patch_width: int = Field(default=8, ge=1, le=_LARGEST_IMAGE, description="vit: pixels")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.kind == "vit":
            _require_multiple("encoder", self.dim, self.heads)
        return self


class FmuSettings(Settings):
    """The Feature Merge Unit."""

    kind: FmuKind = Field(default="queries", description="none: the decoder attends to all image tokens (the control)")
    queries: int = Field(default=26, ge=1, le=1000, description="learned queries, the length of the memory")
    heads: int = Field(default=8, ge=1, le=_DEEPEST, description="attention heads")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="within attention and feed-forward")
    residual_dropout: float = Field(default=0.0, ge=0, lt=1, description="on both residuals")
    final_norm: bool = Field(default=True, description="LayerNorm on the output")
    start: FmuStart = Field(default="positions", description="initialisation of the queries")


class MemorySettings(Settings):
    """The decoder's memory in pre-training."""

    kind: Literal["tokens", "pooled", "columns"] = Field(
        default="tokens",
        description="pooled and token embeddings (as in the paper), the pooled one, or tokens laid out as columns",
    )
    tokens: int = Field(
        default=8, ge=1, le=1000, description="pooled: memory tokens that the pooled embedding is expanded to"
    )
    centred: bool = Field(
        default=False, description="pooled: subtract the mean of the store (text) or the bank (images)"
    )
    columns: int = Field(default=32, ge=1, le=1000, description="columns: feature columns")


class NoiseSettings(Settings):
    """Offline Randomised Perturbation: image embeddings added to text embeddings in pre-training."""

    ratio: float = Field(
        default=0.1,
        ge=0,
        le=1000,
        description="scale of the noise (lambda); for pooled embeddings, its maximum norm relative to the embedding",
    )
    draw: NoiseDraw = Field(
        default="random", description="random crops, the prompt's nearest ones, a mix, or Gaussian noise"
    )
    neighbours: int = Field(default=32, ge=1, le=10_000, description="nearest crops per prompt")
    nearest_share: float = Field(default=0.5, ge=0, le=1, description="mixed: share of nearest crops")
    whole_batch: bool = Field(
        default=False, description="same token positions in all rows of a batch, crops without replacement"
    )

    @property
    def needs_neighbours(self) -> bool:
        """Whether the noise needs each prompt's nearest crops."""
        return self.draw in ("nearest", "mixed")


class TrainingSettings(Settings):
    """The training loop.

    ``compile`` pads batches to few shapes; losses are equal up to rounding, and dropout draws other numbers.

    Attributes:
        HOW: keys that change neither batches nor weights, so a run may be resumed with other values; and ``adapts``,
            as an adaptation has an identity of its own.
    """

    HOW: ClassVar[frozenset[str]] = frozenset({"workers", "log_every", "checkpoint_every", "needs_gpu", "adapts"})

    steps: int = Field(default=1000, ge=1, le=_LARGEST_COUNT, description="optimiser steps")
    batch_size: int = Field(default=128, ge=1, le=1_000_000, description="rows per micro-batch")
    learning_rate: float = Field(default=1e-3, gt=0, le=100, description="maximum of the schedule")
    weight_decay: float = Field(default=0.0, ge=0, le=100)
    schedule: Literal["one-cycle", "cosine", "constant", "trapezoid"] = Field(
        default="one-cycle", description="learning-rate schedule"
    )
    warmup_share: float = Field(default=0.075, ge=0, le=1, description="share of the steps with rising rate")
    decay_share: float = Field(default=0.2, ge=0, le=1, description="trapezoid: share of the steps with falling rate")
    clip_norm: float = Field(default=20.0, ge=0, le=1e9, description="maximum gradient norm; 0: no clipping")
    accumulate: int = Field(default=1, ge=1, le=10_000, description="micro-batches per step")
    ema_decay: float = Field(default=0.0, ge=0, lt=1, description="moving average of the weights; 0: none")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        default="fp32", description="auto: bf16 where the CPU or GPU computes with it"
    )
    compile: Literal["no", "yes", "auto"] = Field(default="no", description="torch.compile of the loss; auto: on a GPU")
    log_every: int = Field(default=50, ge=1, le=_LARGEST_COUNT, description="steps")
    validate_every: int = Field(default=500, ge=1, le=_LARGEST_COUNT, description="steps")
    checkpoint_every: int = Field(default=500, ge=1, le=_LARGEST_COUNT, description="steps")
    patience: int = Field(
        default=0,
        ge=0,
        le=_LARGEST_COUNT,
        description="steps without a better validation result before training stops; 0: none",
    )
    workers: int = Field(default=0, ge=0, le=1000, description="data-loading processes; 0: the training process")
    seed: int = Field(default=0, ge=0, lt=2**63)
    needs_gpu: bool = Field(default=False, description="reject a CPU unless --yes is given")


class PretrainSettings(TrainingSettings):
    """Stage 2: decoder pre-training on text embeddings."""

    validation_share: float = Field(default=0.05, gt=0, lt=1, description="share of held-out labels")
    validation_rows: int = Field(default=1000, ge=1, le=_LARGEST_COUNT, description="maximum labels per validation")
    sampling: Sampling = Field(default="uniform", description="labels uniformly or by corpus count")
    count_power: float = Field(default=0.5, ge=0, le=10, description="count: exponent of the counts")
    clip: str = Field(default="", description="required CLIP of the prompt store; empty: any")
    context: Literal["", "content", "full"] = Field(
        default="", description="required --context of the prompt store; empty: any"
    )
    charset: str = Field(default="", description="required --charset of the prompt store; empty: any")


class FinetuneSettings(TrainingSettings):
    """Stage 3: training a recogniser on labelled crops."""

    encoder_lr_scale: float = Field(
        default=1.0, ge=0, le=1000, description="learning-rate factor; 0 freezes the encoder"
    )
    fmu_lr_scale: float = Field(default=1.0, ge=0, le=1000, description="learning-rate factor; 0 freezes the FMU")
    decoder_lr_scale: float = Field(
        default=1.0, ge=0, le=1000, description="learning-rate factor; 0 freezes the decoder"
    )
    mix: str = Field(
        default="", description="relative sampling rates of the data sets, such as 3,1; empty: each crop once an epoch"
    )
    augmentation: float = Field(default=1.0, ge=0, le=10, description="strength of the distortions")
    distortions: Distortions = Field(default="dptr", description="parseq: the set of PARSeq")
    validation_share: float = Field(default=0.1, gt=0, lt=1, description="share of held-out crops")
    ctc_weight: float = Field(
        default=0.0, ge=0, le=1000, description="weight of an auxiliary CTC loss on the encoder's columns"
    )
    batch_norm: Literal["trained", "fixed"] = Field(
        default="trained", description="fixed: keep the running statistics of the start"
    )
    general: float = Field(
        default=0.0, ge=0, le=1000, description="adapting: rendered crops of general words per labelled crop"
    )
    text: float = Field(default=0.0, ge=0, le=1000, description="adapting: rendered crops of --text per labelled crop")
    unlabelled: float = Field(
        default=0.0, ge=0, le=1000, description="adapting: pseudo-labelled crops per labelled crop"
    )
    rounds: int = Field(default=1, ge=1, le=10, description="adapting: rounds of pseudo-labelling")
    few: int = Field(
        default=0, ge=0, le=_LARGEST_COUNT, description="adapting: cross-validate with fewer labelled crops than this"
    )
    few_steps: int = Field(default=300, ge=1, le=_LARGEST_COUNT, description="adapting: steps when cross-validating")
    folds: int = Field(default=3, ge=2, le=100, description="adapting: folds of the cross-validation")
    adapts: bool = Field(default=True, description="--from RECOGNISER adapts; false: train by the recipe alone")


def _require_multiple(section: str, dim: int, heads: int) -> None:
    if dim % heads:
        raise ValueError(f"{section}.dim = {dim} is not a multiple of {section}.heads = {heads}")


class Recipe(Settings):
    """Everything that fixes a run, apart from the data."""

    decoder: DecoderSettings = DecoderSettings()
    encoder: EncoderSettings = EncoderSettings()
    fmu: FmuSettings = FmuSettings()
    memory: MemorySettings = MemorySettings()
    noise: NoiseSettings = NoiseSettings()
    pretrain: PretrainSettings = PretrainSettings()
    finetune: FinetuneSettings = FinetuneSettings()

    def replace(self, section: str, **values: Any) -> Recipe:
        """Return a copy with some keys of one section changed.

        Raises:
            UserError: an unknown key, or a value out of its range.
        """
        all_values = self.model_dump()
        return parse_recipe({**all_values, section: {**all_values[section], **values}}, "the recipe")

    def defining(self, kind: Literal["pretrain", "finetune"], without_defaults: bool = False) -> dict[str, Any]:
        """Return the keys that determine the result of a run of this kind."""
        unread = {"pretrain": {"encoder", "fmu", "finetune"}, "finetune": {"noise", "pretrain"}}
        all_values = self.model_dump(exclude=unread[kind], exclude_defaults=without_defaults)
        all_values[kind] = {
            key: value for key, value in all_values.get(kind, {}).items() if key not in PretrainSettings.HOW
        }
        return all_values


def load_recipe(name: str, changes: Sequence[str] = (), parts: Mapping[str, Settings] | None = None) -> Recipe:
    """Read a recipe by its bundled name (``tiny``, ``small``, ``paper``) or from a TOML file.

    Args:
        name: bundled name or path.
        changes: ``section.key=value`` strings, the value as TOML (a bare word counts as a string).
        parts: sections that take the place of the recipe's: those of the model that training starts from.

    Raises:
        UserError: no such recipe, broken TOML, an unknown key or a value out of its range.
    """
    bundled = {path.stem: path for path in sorted(_BUNDLED.glob("*.toml"))}
    path = bundled.get(name, Path(name))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error})", "Fix the file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"no recipe {name!r}", f"Use {', '.join(bundled)}, or a TOML file") from error
    values = _read_toml(text, str(path))
    values |= {section: settings.model_dump() for section, settings in (parts or {}).items()}
    changed = {_apply(values, change): f"--set {change}" for change in changes}
    return parse_recipe(values, str(path), changed)


def load_saved_recipe(text: str, origin: str) -> Recipe:
    """Read a recipe that was saved with a run or a model; sections of unknown stages are ignored.

    Raises:
        UserError: it is not one.
    """
    values = _read_toml(text, origin)
    if isinstance(values.get("finetune"), dict):
        values["finetune"].pop("freeze", None)  # a key that the bundled recognisers were trained with
    return parse_recipe({name: values[name] for name in values if name in Recipe.model_fields}, origin)


def parse_recipe(values: Mapping[str, Any], origin: str, changed: Mapping[str, str] | None = None) -> Recipe:
    """Check a mapping of sections against :class:`Recipe`.

    Args:
        values: section -> key -> value.
        origin: where they come from, for errors.
        changed: ``section.key`` -> the option that gave it, for errors.

    Raises:
        UserError: an unknown key, or a value that is not of its type or out of its range.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        # An unknown key comes first: what else is wrong may follow from it.
        found = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        raise _rejection(found[0], origin, changed or {}) from error


def recipe_to_toml(recipe: Recipe) -> str:
    """Write a recipe as TOML that :func:`load_recipe` reads back to the same recipe."""
    return tomli_w.dumps(recipe.model_dump())


def _read_toml(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin} is not valid TOML: {error}", "Fix the file") from error


def _keys_of(section: str) -> dict[str, FieldInfo]:
    kind: Any = Recipe.model_fields[section].annotation
    keys: dict[str, FieldInfo] = kind.model_fields
    return keys


def _rejection(error: Mapping[str, Any], origin: str, given: Mapping[str, str]) -> UserError:
    """Turn one of pydantic's complaints into one line: the key, its value, and what it may be."""
    section, *rest = map(str, error["loc"])
    key = ".".join([section, *rest[:1]])
    options = [option for name, option in given.items() if name.partition(".")[0] == section]
    where = given.get(key, origin) if rest else ", ".join([*options, origin])
    match error["type"]:
        case "extra_forbidden":
            known = [f"{section}.{name}" for name in _keys_of(section)] if rest else list(Recipe.model_fields)
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            place = where if rest else [*options, origin][0]
            return UserError(f"unknown key {key!r} in {place}", f"Did you mean {near[0]!r}?")
        case "model_type":
            return UserError(f"{section!r} in {origin} is not a section", f"Write [{section}] and its keys below")
        case _ if rest:
            wanted = allowed(_keys_of(section)[rest[0]])
            return UserError(f"{key} = {error['input']!r} in {where} cannot be used", f"Give {wanted}")
    return UserError(f"{error['msg'].removeprefix('Value error, ')} ({where})", "Change one of them")


def allowed(field: FieldInfo) -> str:
    """Describe the values that a key takes."""
    if typing.get_origin(field.annotation) is Literal:
        return f"one of: {', '.join(typing.get_args(field.annotation))}"
    if field.annotation is str:
        return "text"
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    limits = [
        f"{word} {getattr(limit, name):,}"
        for name, word in words.items()
        for limit in field.metadata
        if hasattr(limit, name)
    ]
    if field.annotation is bool:
        return "true or false"
    kind = "a whole number" if field.annotation is int else "a number"
    return f"{kind} {' '.join(limits)}"


def _apply(values: dict[str, Any], change: str) -> str:
    """Put a change into ``values``; return its ``section.key``."""
    key, equals, text = change.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise UserError(f"--set {change!r} is not section.key=value", "For example: --set noise.ratio=0.2")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except (ValueError, RecursionError):
        value = text.strip()
    content = values.setdefault(section, {})
    if isinstance(content, dict):  # what is no section is named when all is checked
        content[name] = value
    return f"{section}.{name}"
