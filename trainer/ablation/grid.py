"""The file that describes an ablation: a base recipe, data, seeds, and arms that each change something of it.

What stands at the top holds for every arm; what stands in an arm's table holds for that arm. Both may hold recipe
sections (``[noise]``, ``[arms."much noise".noise]``) and the keys of :class:`Choices`. Paths are relative to the
folder that the command runs in.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dptr.cache.errors import UserError
from dptr.cache.options import LARGEST_SEED
from dptr.trainer.training.recipe import Recipe, load_recipe, parse_recipe

#: Values of ``start`` that name no run: no pre-trained decoder; one that is pre-trained with the arm's own settings.
NOTHING, PRETRAIN = "none", "pretrain"
#: What ``start`` begins with where it names another arm.
ARM = "arm:"
_SECTIONS = ("decoder", "encoder", "fmu", "memory", "noise", "pretrain", "finetune")


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataSet(_Checked):
    """Labelled crops to train on.

    Attributes:
        path: in any accepted form, or a word-crop store; of an arm's data sets all are stores, of one CLIP, or none is.
        crops: how many of them, drawn by the seed; all without it, and 0 leaves them out.
        share: how often they are drawn, relative to the other data sets; give one to all of them or to none.
        made_by: the command that makes them, for the line that a missing path gets.
    """

    path: str | None = None
    crops: int | None = Field(default=None, ge=0)
    share: float | None = Field(default=None, gt=0)
    made_by: str = ""


class Choices(_Checked):
    """What an arm may choose beside recipe keys; the same keys at the top of the file are every arm's default.

    Attributes:
        start: where the decoder comes from: ``none``, ``pretrain`` (a run made with the arm's own ``[pretrain]``,
            ``[noise]`` and ``[decoder]``; arms that agree on these share it), ``arm:NAME`` (what an arm above it
            made with the same seed, trained further), or a run by folder or name: a pre-trained decoder, or a
            recogniser to train further.
        zero_label: read with the pre-trained start through the image tower of its CLIP; nothing is fine-tuned.
        against: the arm that this one is compared with, where it is not the grid's base; its own name for none.
        prompts, orp: stores to pre-train on; those of the workspace without.
        data: data sets by name. An arm names those that it changes.
        seconds: train for as long instead of for ``finetune.steps``; seconds_in_all: the same, with the time that
            pre-training took counted in.
    """

    start: str | None = None
    zero_label: bool = False
    against: str | None = None
    prompts: str | None = None
    orp: str | None = None
    data: dict[str, DataSet] = {}
    seconds: float | None = Field(default=None, gt=0)
    seconds_in_all: float | None = Field(default=None, gt=0)
    decoder: dict[str, Any] = {}
    encoder: dict[str, Any] = {}
    fmu: dict[str, Any] = {}
    memory: dict[str, Any] = {}
    noise: dict[str, Any] = {}
    pretrain: dict[str, Any] = {}
    finetune: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if self.seconds is not None and self.seconds_in_all is not None:
            raise ValueError("seconds and seconds_in_all exclude each other")
        return self


class Grid(Choices):
    """The whole file.

    Attributes:
        recipe: bundled name or file that the sections change. seeds: one run an arm each; of all that is random.
        base: the arm that the others are compared with. arms: by name, in the order of the tables.
        charset: what every arm's recogniser can write. protocol: the field's charset that tests are compared with.
        validation: labelled crops that the best checkpoint is chosen by; without, a share of an arm's own data.
        tests: labelled crops by name, read by every run. resamples: of the bootstrap over test images.
    """

    recipe: str = "tiny"
    seeds: list[int]
    base: str
    arms: dict[str, Choices] = Field(min_length=1)
    charset: str = "36"
    protocol: Literal["36", "62", "94"] = "36"
    validation: str | None = None
    tests: dict[str, str] = Field(min_length=1)
    resamples: int = Field(default=10_000, ge=100, le=1_000_000)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds must be whole numbers, at least one, none twice")
        if not all(0 <= seed <= LARGEST_SEED for seed in self.seeds):
            raise ValueError(f"seeds lie between 0 and {LARGEST_SEED}")
        named = {"base": self.base, **{f"{arm}.against": chosen.against for arm, chosen in self.arms.items()}}
        for place, name in named.items():
            if name is not None and name not in self.arms:
                near = _nearest(name, list(self.arms))
                raise ValueError(f"{place} = {name!r} is no arm, did you mean {near!r}?")
        return self

    def compared_with(self, arm: str) -> str:
        """Return the arm that another is compared with; empty for one that others are compared with."""
        chosen = self.arms[arm].against or self.base
        return "" if chosen == arm else chosen

    def choices(self, arm: str) -> Choices:
        """Return what holds for an arm: its own choices over those of the whole file."""
        ours, own = self.model_dump(include=set(Choices.model_fields)), self.arms[arm].model_dump(exclude_unset=True)
        if own.keys() & {"seconds", "seconds_in_all"}:
            ours["seconds"] = ours["seconds_in_all"] = None
        sections = {name: {**ours[name], **own.get(name, {})} for name in _SECTIONS}
        return Choices.model_validate({**ours, **own, **sections, "data": self._data(own.get("data", {}))})

    def recipe_of(self, arm: str, origin: str) -> Recipe:
        """Return an arm's recipe, before seeds.

        Raises:
            UserError: an unknown key, or a value out of its range.
        """
        values, chosen = load_recipe(self.recipe).model_dump(), self.choices(arm).model_dump()
        changed = {name: {**values[name], **chosen[name]} for name in _SECTIONS}
        return parse_recipe({**values, **changed}, f"{origin}, arm {arm!r}")

    def _data(self, own: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        ours = {name: data.model_dump() for name, data in self.data.items()}
        return {name: {**ours.get(name, {}), **own.get(name, {})} for name in [*ours, *(own.keys() - ours.keys())]}


def load_grid(path: Path) -> Grid:
    """Read a grid and check all of it: every arm's recipe and data, too.

    Raises:
        UserError: no such file, or mistakes in it, all of them in one line.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"no grid at {path} ({error.strerror})", "Name a TOML file with arms and seeds") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid TOML: {error}", "Mend the file") from error
    try:
        grid = Grid.model_validate(values)
    except ValidationError as error:
        raise _mistakes(path, [_complaint(each) for each in error.errors()]) from error
    mistakes = [mistake for arm in grid.arms for mistake in _mistakes_of(grid, arm, str(path))]
    if mistakes:
        raise _mistakes(path, mistakes)
    return grid


def _mistakes_of(grid: Grid, arm: str, origin: str) -> list[str]:
    found = []
    try:
        grid.recipe_of(arm, origin)
    except UserError as error:
        found.append(str(error))
    chosen = grid.choices(arm)
    found += _mistakes_of_start(grid, arm, chosen.start or NOTHING)
    if chosen.zero_label:
        if chosen.start in (None, NOTHING):
            found.append(f"arm {arm!r} has zero_label and no pre-trained start")
        return found
    used = {name: data for name, data in chosen.data.items() if data.crops != 0}
    found += [f"data {name!r} of arm {arm!r} has no path" for name, data in used.items() if data.path is None]
    if not used:
        found.append(f"arm {arm!r} has no data to train on")
    if 0 < sum(data.share is not None for data in used.values()) < len(used):
        found.append(f"arm {arm!r} gives a share to some of its data only")
    return found


def _mistakes_of_start(grid: Grid, arm: str, start: str) -> list[str]:
    names = list(grid.arms)
    above, name = names[: names.index(arm)], start.removeprefix(ARM)
    if name == start:
        return []
    if name not in above:
        near = f", did you mean {_nearest(name, above)!r}?" if above else ""
        return [f"start of arm {arm!r}: {name!r} is no arm above it{near}"]
    if grid.choices(arm).zero_label:
        return [f"arm {arm!r} has zero_label and starts from {name!r}, which was trained on labelled crops"]
    return [f"start of arm {arm!r}: {name!r} trains nothing"] if grid.choices(name).zero_label else []


def _mistakes(path: Path, lines: list[str]) -> UserError:
    return UserError(f"{path}: {'; '.join(line.rstrip('.') for line in lines)}", "See `dptr ablate --help`")


def _complaint(error: Any) -> str:
    """One of pydantic's complaints: where, what, and what was meant."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}, did you mean {_nearest(str(error['loc'][-1]), _known_keys(error['loc']))!r}?"
    if error["type"] == "missing":
        return f"{key!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key} = {error['input']!r}: {message}" if key and error["type"] != "value_error" else message


def _known_keys(key: tuple[str | int, ...]) -> list[str]:
    if len(key) >= 3 and key[-3] == "data":
        return list(DataSet.model_fields)
    return list((Choices if len(key) >= 3 else Grid).model_fields)


def _nearest(name: str, known: list[str]) -> str:
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
