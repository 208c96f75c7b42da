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
    """The decoder that stages 2 and 3 share. ``memory_dim`` 0 takes the store's width, or ``dim`` without a store."""

    kind: str = "parseq"
    memory_dim: int = Field(default=0, ge=0, le=WIDEST)
    dim: int = Field(default=192, ge=1, le=WIDEST)
    heads: int = Field(default=6, ge=1, le=_DEEPEST)
    layers: int = Field(default=1, ge=1, le=_DEEPEST)
    feed_forward: int = Field(default=768, ge=1, le=4 * WIDEST)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    permutations: int = Field(default=6, ge=1, le=1000)
    refinements: int = Field(default=1, ge=0, le=100)
    refinement: Refinement = "cloze"
    max_label_length: int = Field(default=25, ge=1, le=1000)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        _require_multiple("decoder", self.dim, self.heads)
        return self


class EncoderSettings(Settings):
    """The image encoder: ``vit`` (patches), ``convolution`` (columns; ``channels`` of its first stage) or a model's.

    ``clip:`` and a directory or hub id takes the image encoder of that CLIP, ``hf:`` any vision model that transformers
    knows, sizes and all; ``config`` is its description and filled in when the recipe is resolved.
    ``image_widths`` are further widths, between commas, that ``convolution`` takes: training draws one of all for each
    batch, reading chooses by the shape of each picture.
    """

    kind: str = "vit"
    config: str = ""
    stem: Literal["linear", "convolution"] = "linear"
    dim: int = Field(default=192, ge=1, le=WIDEST)
    heads: int = Field(default=3, ge=1, le=_DEEPEST)
    layers: int = Field(default=6, ge=1, le=_DEEPEST)
    channels: int = Field(default=32, ge=1, le=WIDEST)
    image_height: int = Field(default=32, ge=2, le=_LARGEST_IMAGE)
    image_width: int = Field(default=128, ge=2, le=_LARGEST_IMAGE)
    image_widths: str = ""
    patch_height: int = Field(default=4, ge=1, le=_LARGEST_IMAGE)
    patch_width: int = Field(default=8, ge=1, le=_LARGEST_IMAGE)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.kind == "vit":
            _require_multiple("encoder", self.dim, self.heads)
        return self


class FmuSettings(Settings):
    """The Feature Merge Unit; ``none`` hands the decoder all image tokens (the control).

    ``residual_dropout`` drops what attention and feed-forward add to the queries, ``final_norm`` ends in a LayerNorm.
    """

    kind: FmuKind = "queries"
    queries: int = Field(default=26, ge=1, le=1000)
    heads: int = Field(default=8, ge=1, le=_DEEPEST)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    residual_dropout: float = Field(default=0.0, ge=0, lt=1)
    final_norm: bool = True
    start: FmuStart = "positions"


class MemorySettings(Settings):
    """What the decoder is given.

    Attributes:
        kind: ``tokens`` (a prompt's pooled vector and embeddings, as in the paper), ``pooled`` (its pooled vector
            alone,
            which an image's may replace) or ``columns`` (its embeddings laid out as an image's columns).
        tokens: memory tokens that a pooled vector is unfolded into.
        centred: whether pooled vectors are centred by their side's mean, text by the store's and images by the bank's.
        columns: columns of a text memory.
    """

    kind: Literal["tokens", "pooled", "columns"] = "tokens"
    tokens: int = Field(default=8, ge=1, le=1000)
    centred: bool = False
    columns: int = Field(default=32, ge=1, le=1000)


class NoiseSettings(Settings):
    """Offline randomised perturbation: how ORP embeddings are added to text embeddings in pre-training.

    ``ratio`` is what token embeddings are multiplied by; for pooled vectors, the most that noise is as long as the
    vector. ``draw`` says whose embeddings: of any crop, of the prompt's nearest, of either, or (``gaussian``) of none.
    ``whole_batch`` draws token positions once a batch, and no crop twice in it while the bank has enough.
    """

    ratio: float = Field(default=0.1, ge=0, le=1000)
    draw: NoiseDraw = "random"
    neighbours: int = Field(default=32, ge=1, le=10_000)
    nearest_share: float = Field(default=0.5, ge=0, le=1)
    whole_batch: bool = False

    @property
    def needs_neighbours(self) -> bool:
        """Whether each prompt's nearest crops have to be known."""
        return self.draw in ("nearest", "mixed")


class TrainingSettings(Settings):
    """One run of the training loop.

    ``compile`` joins the loss's operations into few kernels, once for each shape of a batch; batches are then padded to
    few shapes. Losses are the same to rounding, dropout draws other numbers.

    Attributes:
        HOW: keys that say how a run is carried out. They change neither its batches nor its weights, so that a run may
            go on with others.
    """

    HOW: ClassVar[frozenset[str]] = frozenset({"workers", "log_every", "checkpoint_every", "needs_gpu"})

    steps: int = Field(default=1000, ge=1, le=_LARGEST_COUNT)
    batch_size: int = Field(default=128, ge=1, le=1_000_000)
    learning_rate: float = Field(default=1e-3, gt=0, le=100)
    weight_decay: float = Field(default=0.0, ge=0, le=100)
    schedule: Literal["one-cycle", "cosine", "constant", "trapezoid"] = "one-cycle"
    warmup_share: float = Field(default=0.075, ge=0, le=1)
    decay_share: float = Field(default=0.2, ge=0, le=1, description="of a trapezoid's steps")
    clip_norm: float = Field(default=20.0, ge=0, le=1e9, description="0: not clipped")
    accumulate: int = Field(default=1, ge=1, le=10_000)
    ema_decay: float = Field(default=0.0, ge=0, lt=1, description="0: no average is kept")
    precision: Literal["fp32", "bf16", "auto"] = Field(default="fp32", description="auto: bf16 where it is quick")
    compile: Literal["no", "yes", "auto"] = Field(default="no", description="auto: on a GPU")
    log_every: int = Field(default=50, ge=1, le=_LARGEST_COUNT)
    validate_every: int = Field(default=500, ge=1, le=_LARGEST_COUNT)
    checkpoint_every: int = Field(default=500, ge=1, le=_LARGEST_COUNT)
    patience: int = Field(default=0, ge=0, le=_LARGEST_COUNT, description="0: to the last step")
    workers: int = Field(default=0, ge=0, le=1000, description="0: batches are made in the training process")
    seed: int = Field(default=0, ge=0, lt=2**63)
    needs_gpu: bool = Field(default=False, description="a CPU only with --yes")


class PretrainSettings(TrainingSettings):
    """Stage 2. ``sampling`` draws labels uniformly or by their corpus counts raised to ``count_power``.

    ``validation_share`` of the labels is never trained on; at most ``validation_rows`` of them are read at a time.
    ``clip``, ``context`` and ``charset`` reject a prompt store made with another one; empty: any store.
    """

    validation_share: float = Field(default=0.05, gt=0, lt=1)
    validation_rows: int = Field(default=1000, ge=1, le=_LARGEST_COUNT)
    sampling: Sampling = "uniform"
    count_power: float = Field(default=0.5, ge=0, le=10)
    clip: str = ""
    context: Literal["", "content", "full"] = ""
    charset: str = ""


class FinetuneSettings(TrainingSettings):
    """Stage 3. Learning-rate factors apply to the parts: encoder, FMU and decoder; 0 freezes a part.

    ``mix`` says how often each of the data sets is drawn, relative to the others, in the order they are named: "3,1".
    Left empty, every word image is drawn once an epoch.
    ``ctc_weight`` adds a CTC loss on the encoder's columns, in training only: with few crops, attention alone is slow
    to find where the characters are (as in hybrid CTC/attention speech recognition, Watanabe et al. 2017).
    ``batch_norm`` ``fixed`` keeps the running statistics of the start: small batches of one domain would move them.

    When training starts from a recogniser, crops are rendered besides: of general words, so that they are not
    forgotten, and of the text that is given. A batch has ``general`` and ``text`` of them for each labelled crop, and
    ``unlabelled`` crops with predicted labels, in ``rounds`` rounds of prediction. Fewer than ``few`` labelled crops
    are cross-validated in ``folds`` parts, with ``few_steps`` steps at most.
    """

    encoder_lr_scale: float = Field(default=1.0, ge=0, le=1000)
    fmu_lr_scale: float = Field(default=1.0, ge=0, le=1000)
    decoder_lr_scale: float = Field(default=1.0, ge=0, le=1000)
    mix: str = ""
    augmentation: float = Field(default=1.0, ge=0, le=10)
    distortions: Distortions = "dptr"
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    ctc_weight: float = Field(default=0.0, ge=0, le=1000)
    batch_norm: Literal["trained", "fixed"] = "trained"
    general: float = Field(default=0.0, ge=0, le=1000)
    text: float = Field(default=0.0, ge=0, le=1000)
    unlabelled: float = Field(default=0.0, ge=0, le=1000)
    rounds: int = Field(default=1, ge=1, le=10)
    few: int = Field(default=0, ge=0, le=_LARGEST_COUNT)
    few_steps: int = Field(default=300, ge=1, le=_LARGEST_COUNT)
    folds: int = Field(default=3, ge=2, le=100)


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
        """Return the keys that decide what a run of this kind comes to: not how it is run, nor other stages' keys."""
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
        raise UserError(f"{path} is not UTF-8 ({error})", "Mend the file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"no recipe {name!r}", f"Use {', '.join(bundled)}, or a TOML file") from error
    values = _read_toml(text, str(path))
    values |= {section: settings.model_dump() for section, settings in (parts or {}).items()}
    changed = {_apply(values, change): f"--set {change}" for change in changes}
    return parse_recipe(values, str(path), changed)


def load_saved_recipe(text: str, origin: str) -> Recipe:
    """Read a recipe that was saved with a run or a model; sections of stages that are not dptr's are left out.

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
    given = changed or {}
    for section, content in values.items():
        if section not in Recipe.model_fields:
            named = [option for key, option in given.items() if key.partition(".")[0] == section]
            raise _unknown(section, list(Recipe.model_fields), named[0] if named else origin)
        if not isinstance(content, Mapping):
            raise UserError(f"{section!r} in {origin} is not a section", f"Write [{section}] and its keys below")
        keys = _keys_of(section)
        for name in content:
            if name not in keys:
                key = f"{section}.{name}"
                raise _unknown(key, [f"{section}.{known}" for known in keys], given.get(key, origin))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise _rejection(error, origin, given) from error


def recipe_to_toml(recipe: Recipe) -> str:
    """Write a recipe as TOML that :func:`load_recipe` reads back to the same recipe."""
    return tomli_w.dumps(recipe.model_dump())


def _read_toml(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin} is not valid TOML: {error}", "Mend the file") from error


def _keys_of(section: str) -> dict[str, FieldInfo]:
    kind: Any = Recipe.model_fields[section].annotation
    keys: dict[str, FieldInfo] = kind.model_fields
    return keys


def _rejection(error: ValidationError, origin: str, given: Mapping[str, str]) -> UserError:
    """Turn the first of pydantic's complaints into one line: the key, its value, and what it may be."""
    first = error.errors()[0]
    if len(first["loc"]) < 2:
        options = [option for key, option in given.items() if key.partition(".")[0] == str(first["loc"][0])]
        where = ", ".join([*options, origin])
        return UserError(f"{first['msg'].removeprefix('Value error, ')} ({where})", "Change one of them")
    section, name = map(str, first["loc"][:2])
    key, wanted = f"{section}.{name}", _wanted(_keys_of(section)[name])
    return UserError(
        f"{key} = {first['input']!r} in {given.get(key, origin)} cannot be used",
        f"Give {wanted}",
    )


def _wanted(field: FieldInfo) -> str:
    """Say in words what values a key takes."""
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


def _unknown(key: str, known: list[str], origin: str) -> UserError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return UserError(f"unknown key {key!r} in {origin}", f"Did you mean {near[0]!r}?")
