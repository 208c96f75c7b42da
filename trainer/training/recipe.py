"""A recipe fixes a training run: strict TOML to typed sections, resolved once and saved with the run.

Settings come from the defaults here, then the recipe file, then ``--set section.key=value``. An unknown key is an error
that names the nearest known one: a misspelt setting must not train for a night with the default.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dptr.cache.errors import UserError

_BUNDLED = Path(__file__).resolve().parents[2] / "recipes"


@dataclass(frozen=True)
class DecoderSettings:
    """The decoder that stages 2 and 3 share. ``memory_dim`` 0 takes the store's width, or ``dim`` without a store."""

    kind: str = "parseq"
    memory_dim: int = 0
    dim: int = 192
    heads: int = 6
    layers: int = 1
    feed_forward: int = 768
    dropout: float = 0.1
    permutations: int = 6
    refinements: int = 1
    max_label_length: int = 25


@dataclass(frozen=True)
class EncoderSettings:
    """The image encoder: ``vit`` (patches), ``convolution`` (columns; ``channels`` of its first stage) or ``clip:ID``.

    ``clip:`` and a directory or hub id takes the image tower of that CLIP, sizes and all; ``config`` is its description
    and filled in when the recipe is resolved.
    """

    kind: str = "vit"
    config: str = ""
    stem: Literal["linear", "convolution"] = "linear"
    dim: int = 192
    heads: int = 3
    layers: int = 6
    channels: int = 32
    image_height: int = 32
    image_width: int = 128
    patch_height: int = 4
    patch_width: int = 8


@dataclass(frozen=True)
class FmuSettings:
    """The Feature Merge Unit; ``none`` hands the decoder all image tokens (the control)."""

    kind: Literal["queries", "none"] = "queries"
    queries: int = 26
    heads: int = 8
    dropout: float = 0.0


@dataclass(frozen=True)
class NoiseSettings:
    """Offline randomised perturbation: how ORP states are added to text states in pre-training."""

    ratio: float = 0.1
    draw: Literal["random", "nearest", "mixed"] = "random"
    neighbours: int = 32
    nearest_share: float = 0.5


@dataclass(frozen=True)
class TrainingSettings:
    """One run of the training loop."""

    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    warmup_share: float = 0.075
    clip_norm: float = 20.0
    accumulate: int = 1
    ema_decay: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    log_every: int = 50
    validate_every: int = 500
    checkpoint_every: int = 500
    validation_rows: int = 1000
    patience: int = 0
    workers: int = 0
    seed: int = 0


@dataclass(frozen=True)
class PretrainSettings(TrainingSettings):
    """Stage 2. ``sampling`` draws labels uniformly or by their corpus counts raised to ``count_power``."""

    sampling: Literal["uniform", "count"] = "uniform"
    count_power: float = 0.5


@dataclass(frozen=True)
class FinetuneSettings(TrainingSettings):
    """Stage 3. Learning-rate factors apply to the parts: encoder, FMU and decoder.

    ``freeze`` keeps parts as they came for so many epochs: "decoder:5", or "decoder:5 fmu:1".
    ``mix`` says how often each of the data sets is drawn, relative to the others, in the order they are named: "3,1".
    Left empty, every word image is drawn once an epoch.
    ``ctc_weight`` adds a CTC loss on the encoder's columns, in training only: with few crops, attention alone is slow
    to find where the characters are (as in hybrid CTC/attention speech recognition, Watanabe et al. 2017).
    """

    encoder_rate: float = 1.0
    fmu_rate: float = 1.0
    decoder_rate: float = 1.0
    freeze: str = ""
    mix: str = ""
    augmentation: float = 1.0
    held_back: float = 0.1
    ctc_weight: float = 0.0


@dataclass(frozen=True)
class ClipSettings(TrainingSettings):
    """Training of a CLIP.

    ``photos`` without text join each batch as wrong answers. ``letters_weight`` is that of the question which letter
    stands where, beside the contrastive loss; ``states_weight`` that of the question which token a text state is of.
    """

    template: str = "a photo of a '{label}'"
    photos: int = 8
    letters_weight: float = 1.0
    states_weight: float = 0.5


@dataclass(frozen=True)
class Recipe:
    """Everything that fixes a run, apart from the data."""

    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    fmu: FmuSettings = field(default_factory=FmuSettings)
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    clip: ClipSettings = field(default_factory=ClipSettings)

    def replace(self, section: str, **values: Any) -> Recipe:
        """Return a copy with some keys of one section changed."""
        return dataclasses.replace(self, **{section: dataclasses.replace(getattr(self, section), **values)})


def load_recipe(name: str, changes: Sequence[str] = (), decoder: DecoderSettings | None = None) -> Recipe:
    """Read a recipe by its bundled name (``tiny``, ``small``, ``paper``) or from a TOML file.

    Args:
        name: bundled name or path.
        changes: ``section.key=value`` strings, the value as TOML (a bare word counts as a string).
        decoder: takes the place of the recipe's decoder section: the decoder of the run that training starts from.

    Raises:
        UserError: no such recipe, broken TOML, an unknown key or a value of the wrong type.
    """
    path = Path(name)
    if not path.suffix and (_BUNDLED / f"{name}.toml").is_file():
        path = _BUNDLED / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _BUNDLED.glob("*.toml")))
        raise UserError(f"no recipe {name!r}", f"Use {known}, or a TOML file")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}", "Mend the file") from error
    if decoder is not None:
        values["decoder"] = dataclasses.asdict(decoder)
    for change in changes:
        _apply(values, change)
    return parse_recipe(values, str(path))


def parse_recipe(values: Mapping[str, Any], origin: str) -> Recipe:
    """Check a mapping of sections against :class:`Recipe`; ``origin`` is named in errors."""
    sections = {f.name: f for f in dataclasses.fields(Recipe)}
    built: dict[str, Any] = {}
    for section, content in values.items():
        if section not in sections:
            raise _unknown(section, list(sections), origin)
        if not isinstance(content, Mapping):
            raise UserError(f"{section!r} in {origin} is not a section", f"Write [{section}] and its keys below")
        kind: Any = typing.get_type_hints(Recipe)[section]
        built[section] = _parse_section(kind, section, content, origin)
    return Recipe(**built)


def recipe_to_toml(recipe: Recipe) -> str:
    """Write a recipe as TOML that :func:`load_recipe` reads back to the same recipe."""
    parts = []
    for section in dataclasses.fields(recipe):
        parts.append(f"[{section.name}]")
        for key, value in dataclasses.asdict(getattr(recipe, section.name)).items():
            parts.append(f"{key} = {json.dumps(value)}")
        parts.append("")
    return "\n".join(parts)


def _parse_section(kind: Any, section: str, content: Mapping[str, Any], origin: str) -> Any:
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in hints:
            raise _unknown(f"{section}.{key}", [f"{section}.{name}" for name in hints], origin)
        values[key] = _check(value, hints[key], f"{section}.{key}", origin)
    return kind(**values)


def _check(value: Any, hint: Any, key: str, origin: str) -> Any:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise UserError(f"{key} = {value!r} in {origin}", f"Use one of: {', '.join(map(str, choices))}")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        wanted = hint.__name__ if not isinstance(hint, types.UnionType) else str(hint)
        raise UserError(f"{key} = {value!r} in {origin} is not of type {wanted}", "Mend the value")
    if hint in (int, float) and value < 0:
        raise UserError(f"{key} = {value!r} in {origin} is negative", "Give zero or more")
    return value


def _apply(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise UserError(f"--set {change!r} is not section.key=value", "For example: --set noise.ratio=0.2")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    values.setdefault(section, {})[name] = value


def _unknown(key: str, known: list[str], origin: str) -> UserError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return UserError(f"unknown key {key!r} in {origin}", f"Did you mean {near[0]!r}?")
