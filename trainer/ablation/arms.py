"""What a grid comes to: one trial for each arm and seed, and the pre-trainings that they start from.

Both are plain values, so that another process can run them, and carry a key made of everything that fixes their result
(recipe, data, stores, start). A folder is named by its key: the same trial finds it again, in this ablation
or in another one of the workspace.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dptr.cache.errors import UserError
from dptr.cache.file_names import MANIFEST_FILE
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.workspace import Workspace
from dptr.pipeline.clip.clip_files import find_clip
from dptr.pipeline.neighbours.mine_neighbours import mine_neighbours
from dptr.trainer import finetune, pretrain
from dptr.trainer.ablation.crops import (
    charset_named,
    fingerprint,
    fixed_by_stores,
    open_data,
    open_validation,
    require,
)
from dptr.trainer.ablation.grid import ARM, NOTHING, PRETRAIN, Choices, DataSet, Grid
from dptr.trainer.model.encoders import describe, model_of
from dptr.trainer.training.recipe import Recipe, parse_recipe, recipe_to_toml
from dptr.trainer.training.runs import Run
from dptr.trainer.training.settings import Settings

_STAGE_2_ALONE, _STAGE_3_ALONE = {"noise", "pretrain"}, {"encoder", "fmu", "finetune"}


@dataclass(frozen=True)
class Pretraining:
    """A decoder to pre-train: its recipe, its stores, where it goes."""

    recipe: Recipe
    prompts: Path
    orp: Path | None
    folder: Path


@dataclass(frozen=True, eq=False)
class Trial:
    """One arm with one seed.

    Attributes:
        key: of everything that fixes the result. folder: of its run.
        start: the folder of the run that it starts from, which may have to be made first. earlier: of the runs that
            this one came from in turn. start_kind: as in the grid. after: how many other trials come before it.
        zero_label: nothing is trained, the start reads as it is.
        data: what it trains on. validation: what its best checkpoint is chosen by, or None.
        tests: labelled crops by name. budget: seconds to train for instead of the recipe's steps, and whether
            pre-training counts. encoder_model: folder of the model whose weights its encoder starts
            from.
    """

    arm: str
    seed: int
    key: str
    folder: Path
    recipe: Recipe
    start: Path | None
    start_kind: str
    charset: str
    protocol: str
    data: dict[str, DataSet]
    validation: Path | None
    tests: dict[str, Path]
    budget: tuple[float, bool] | None = None
    encoder_model: Path | None = None
    zero_label: bool = False
    earlier: tuple[Path, ...] = ()
    after: int = 0


@dataclass(frozen=True)
class Start:
    """Where an arm's weights come from.

    Attributes:
        folder: of the run, which may have to be made first; None for none. recipe: the arm's, with what the run fixes.
        clip: name of the CLIP that embedded its text. trial: that makes the run, where it is another arm's.
    """

    folder: Path | None
    recipe: Recipe
    clip: str = ""
    trial: Trial | None = None

    def earlier(self) -> tuple[Path, ...]:
        """Return the folders of the runs that the start itself came from."""
        if self.trial is None or self.trial.start is None:
            return ()
        return (*self.trial.earlier, self.trial.start)


@dataclass(frozen=True)
class Plan:
    """All of an ablation, in the order in which it runs: every arm with the first seed, then with the second."""

    pretrainings: list[Pretraining] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)


def plan(grid: Grid, origin: str, workspace: Workspace) -> Plan:
    """Turn a grid into trials; all data is opened, so that mistakes are found before any training.

    Raises:
        UserError, DamagedStore: data, a store or a run is missing or does not fit.
    """
    made = Plan()
    for seed in grid.seeds:
        for arm in grid.arms:
            chosen, recipe = grid.choices(arm), _seeded(grid.recipe_of(arm, origin), seed)
            start = _start(made, seed, chosen, recipe, workspace)
            make = _zero_label_trial if chosen.zero_label else _trial
            trial = make(grid, arm, seed, chosen, start, workspace)
            same = [known.arm for known in made.trials if known.key == trial.key]
            if same:
                raise UserError(f"{origin}: arms {same[0]!r} and {arm!r} train the same", "Leave one of them out")
            made.trials.append(trial)
    for name, path in grid.tests.items():
        require(Path(path), f"test crops {name!r}", "")
    return made


def key_of(*parts: Any) -> str:
    """Return a name for what the parts fix together."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _trial(grid: Grid, arm: str, seed: int, chosen: Choices, start: Start, workspace: Workspace) -> Trial:
    data, recipe = {name: each for name, each in chosen.data.items() if each.crops != 0}, start.recipe
    if all(each.share is not None for each in data.values()):
        recipe = recipe.replace("finetune", mix=",".join(f"{each.share:g}" for each in data.values()))
    for section, values in fixed_by_stores(data).items():
        recipe = recipe.replace(section, **values)
    encoder_model, name = None, model_of(recipe.encoder.kind)
    if name is not None:
        encoder_model = find_clip(name)
        recipe = recipe.replace("encoder", config=describe(recipe.encoder.kind, encoder_model))
    recipe = _without(recipe, _STAGE_2_ALONE)
    validation = None if grid.validation is None else Path(grid.validation)
    budget = _budget(chosen)
    fixed = recipe if budget is None else recipe.replace("finetune", steps=1)
    key = key_of(
        recipe_to_toml(fixed),
        budget,
        charset_named(grid.charset).text,
        fingerprint(open_data(data, grid.charset, recipe)),
        None if validation is None else fingerprint(open_validation(validation, grid.charset, recipe)),
        None if start.folder is None else start.folder.name,
    )
    return Trial(
        arm=arm,
        seed=seed,
        key=key,
        folder=workspace.ablations / "runs" / key,
        recipe=recipe,
        start=start.folder,
        start_kind=chosen.start or NOTHING,
        charset=grid.charset,
        protocol=grid.protocol,
        data=data,
        validation=validation,
        tests={name: Path(path) for name, path in grid.tests.items()},
        budget=budget,
        encoder_model=encoder_model,
        earlier=start.earlier(),
        after=0 if start.trial is None else start.trial.after + 1,
    )


def _zero_label_trial(grid: Grid, arm: str, seed: int, chosen: Choices, start: Start, workspace: Workspace) -> Trial:
    if start.folder is None:
        raise ValueError("a grid is checked for this")
    key = key_of("zero label", start.folder.name)
    return Trial(
        arm=arm,
        seed=seed,
        key=key,
        folder=workspace.ablations / "runs" / key,
        recipe=start.recipe,
        start=start.folder,
        start_kind=chosen.start or NOTHING,
        charset=grid.charset,
        protocol=grid.protocol,
        data={},
        validation=None,
        tests={name: Path(path) for name, path in grid.tests.items()},
        encoder_model=find_clip(start.clip),
        zero_label=True,
    )


def _start(made: Plan, seed: int, chosen: Choices, recipe: Recipe, workspace: Workspace) -> Start:
    """Resolve where an arm's decoder comes from; a pre-training that it needs joins the plan."""
    start = chosen.start or NOTHING
    if start == NOTHING:
        return Start(None, recipe)
    encoder_is_named = "kind" in chosen.encoder
    if start == PRETRAIN:
        wanted, clip = _pretraining(chosen, _without(recipe, _STAGE_3_ALONE), workspace)
        if wanted.folder not in [known.folder for known in made.pretrainings]:
            made.pretrainings.append(wanted)
        parts = finetune.seen_through(recipe.memory.kind, clip, encoder_is_named)
        return Start(wanted.folder, _with_parts(recipe, parts), clip)
    if start.startswith(ARM):
        (trial,) = [known for known in made.trials if (ARM + known.arm, known.seed) == (start, seed)]
        return Start(trial.folder, _with_parts(recipe, finetune.parts_of_recogniser(trial.recipe)), trial=trial)
    run = Run.load(workspace.find_run(start))
    run.weights()
    return Start(run.folder, _with_parts(recipe, finetune.parts_of(run, encoder_is_named)), run.clip)


def _with_parts(recipe: Recipe, parts: dict[str, Settings]) -> Recipe:
    for section, settings in parts.items():
        recipe = recipe.replace(section, **settings.model_dump())
    return recipe


def _pretraining(chosen: Choices, recipe: Recipe, workspace: Workspace) -> tuple[Pretraining, str]:
    """Return what is to be pre-trained, and the name of the CLIP that embedded its text."""
    prompts = Path(chosen.prompts) if chosen.prompts else workspace.prompts
    require(prompts / MANIFEST_FILE, "prompt store", "dptr embed-text WORDS")
    store, orp, bank = PromptStore(prompts), None, None
    if recipe.noise.ratio > 0:
        orp = Path(chosen.orp) if chosen.orp else workspace.orp
        require(orp / MANIFEST_FILE, "ORP bank", "dptr build-orp-bank PHOTOS")
        bank = OrpBank(orp)
        if recipe.noise.needs_neighbours:
            mine_neighbours(prompts, orp, recipe.noise.neighbours)
    key = key_of(recipe_to_toml(recipe), pretrain.data_identity(store, bank))
    folder = workspace.ablations / "pretrained" / key
    return Pretraining(recipe, prompts, orp, folder), store.manifest.identity["encoder"]


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return recipe.replace("pretrain", seed=seed).replace("finetune", seed=seed)


def _without(recipe: Recipe, sections: set[str]) -> Recipe:
    """Set the sections that a stage does not use to their defaults, so that they are no part of its identity."""
    return parse_recipe(recipe.model_dump(exclude=sections | {"clip"}), "the recipe")


def _budget(chosen: Choices) -> tuple[float, bool] | None:
    if chosen.seconds is not None:
        return chosen.seconds, False
    return None if chosen.seconds_in_all is None else (chosen.seconds_in_all, True)
