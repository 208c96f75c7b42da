"""A recipe fixes a training run: strict TOML to typed sections, resolved once and saved with the run.

Settings come from the defaults in :mod:`~dptr.trainer.training.settings`, then the recipe file, then ``--set
section.key=value``. An unknown key is an error that names the nearest known one: a misspelt key would otherwise
train for a night with the default.
"""

from __future__ import annotations

import difflib
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from dptr.cache.errors import UserError
from dptr.trainer.training.settings import (
    ClipSettings,
    DecoderSettings,
    EncoderSettings,
    FinetuneSettings,
    FmuSettings,
    MemorySettings,
    NoiseSettings,
    PretrainSettings,
    Settings,
)

_BUNDLED = Path(__file__).resolve().parents[2] / "recipes"
#: Files beside the recipes whose names begin so are grids of ``dptr ablate``.
_GRID = "ablate-"

#: Keys that runs of earlier versions saved under another name; None: they had no effect.
_FORMER_KEYS = {
    "finetune.held_back": "finetune.validation_share",
    "finetune.encoder_rate": "finetune.encoder_lr_scale",
    "finetune.fmu_rate": "finetune.fmu_lr_scale",
    "finetune.decoder_rate": "finetune.decoder_lr_scale",
    "finetune.validation_rows": None,
    "finetune.freeze": None,
}


class Recipe(Settings):
    """Everything that fixes a run, apart from the data."""

    decoder: DecoderSettings = DecoderSettings()
    encoder: EncoderSettings = EncoderSettings()
    fmu: FmuSettings = FmuSettings()
    memory: MemorySettings = MemorySettings()
    noise: NoiseSettings = NoiseSettings()
    pretrain: PretrainSettings = PretrainSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    clip: ClipSettings = ClipSettings()

    def replace(self, section: str, **values: Any) -> Recipe:
        """Return a copy with some keys of one section changed.

        Raises:
            UserError: an unknown key, or a value out of its range.
        """
        all_values = self.model_dump()
        return parse_recipe({**all_values, section: {**all_values[section], **values}}, "the recipe")

    def defining(self, kind: Literal["pretrain", "finetune", "clip"], without_defaults: bool = False) -> dict[str, Any]:
        """Return the keys that decide what a run of this kind comes to: not how it is run, nor other stages' keys."""
        others = {"pretrain": {"encoder", "fmu", "finetune", "clip"}, "finetune": {"noise", "pretrain", "clip"}}
        unread = others.get(kind, {"encoder", "fmu", "memory", "noise", "pretrain", "finetune"})
        all_values = self.model_dump(exclude=unread, exclude_defaults=without_defaults)
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
    bundled = {path.stem: path for path in sorted(_BUNDLED.glob("*.toml")) if not path.stem.startswith(_GRID)}
    path = bundled.get(name, Path(name))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error})", "Mend the file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"no recipe {name!r}", f"Use {', '.join(bundled)}, or a TOML file") from error
    values = _read_toml(text, str(path))
    values |= {section: settings.model_dump() for section, settings in (parts or {}).items()}
    for change in changes:
        _apply(values, change)
    return parse_recipe(values, str(path))


def load_saved_recipe(text: str, origin: str) -> Recipe:
    """Read a recipe that was saved with a run or a model, of this version or an earlier one.

    Raises:
        UserError: it is not one.
    """
    values = _read_toml(text, origin)
    for former, now in _FORMER_KEYS.items():
        section, key = former.split(".")
        if not isinstance(values.get(section), dict) or key not in values[section]:
            continue
        value = values[section].pop(key)
        if now is not None:
            values[section][now.split(".")[1]] = value
    return parse_recipe(values, origin)


def parse_recipe(values: Mapping[str, Any], origin: str) -> Recipe:
    """Check a mapping of sections against :class:`Recipe`; ``origin`` is named in errors.

    Raises:
        UserError: an unknown key, or a value that is not of its type or out of its range.
    """
    for section, content in values.items():
        if section not in Recipe.model_fields:
            raise _unknown(section, list(Recipe.model_fields), origin)
        if not isinstance(content, Mapping):
            raise UserError(f"{section!r} in {origin} is not a section", f"Write [{section}] and its keys below")
        keys = _keys_of(section)
        for key in content:
            if key not in keys:
                raise _unknown(f"{section}.{key}", [f"{section}.{name}" for name in keys], origin)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise _refusal(error, origin) from error


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


def _refusal(error: ValidationError, origin: str) -> UserError:
    """Turn the first of pydantic's complaints into one line: the key, its value, and what it may be."""
    first = error.errors()[0]
    if len(first["loc"]) < 2:
        return UserError(f"{first['msg'].removeprefix('Value error, ')} ({origin})", "Change one of them")
    section, key = map(str, first["loc"][:2])
    wanted = _wanted(_keys_of(section)[key])
    return UserError(f"{section}.{key} = {first['input']!r} in {origin} cannot be used", f"Give {wanted}")


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


def _apply(values: dict[str, Any], change: str) -> None:
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


def _unknown(key: str, known: list[str], origin: str) -> UserError:
    if key in _FORMER_KEYS:
        now = _FORMER_KEYS[key]
        return UserError(f"unknown key {key!r} in {origin}", f"It is called {now!r} now" if now else "Remove the line")
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return UserError(f"unknown key {key!r} in {origin}", f"Did you mean {near[0]!r}?")
