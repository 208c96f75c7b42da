"""A grid's file: what an arm makes of what holds for all, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from dptr.cache.errors import UserError
from dptr.trainer.ablation.grid import load_grid
from dptr.trainer.training.recipe import load_recipe

GRID = """
recipe = "tiny"
seeds = [1, 2]
base = "plain"
seconds = 60.0
[finetune]
steps = 30
batch_size = 8
[data.real]
path = "real"
share = 3.0
[data.rendered]
path = "rendered"
share = 1.0
[tests]
signs = "signs"
[arms.plain]
[arms."few crops"]
start = "pretrain"
seconds_in_all = 90.0
data.real.crops = 100
data.rendered.crops = 0
finetune.steps = 7
noise.ratio = 1.0
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "grid.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_arm_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    grid = load_grid(written(tmp_path, GRID))
    plain, few = grid.choices("plain"), grid.choices("few crops")
    assert (plain.start, plain.seconds, plain.seconds_in_all) == (None, 60, None)
    assert (few.start, few.seconds, few.seconds_in_all) == ("pretrain", None, 90)
    assert (few.data["real"].path, few.data["real"].crops, few.data["real"].share) == ("real", 100, 3)
    assert plain.data["real"].crops is None
    recipes = [grid.recipe_of(arm, "grid") for arm in ("plain", "few crops")]
    assert [recipe.finetune.steps for recipe in recipes] == [30, 7]
    assert [recipe.finetune.batch_size for recipe in recipes] == [8, 8]
    assert [recipe.noise.ratio for recipe in recipes] == [0.1, 1.0]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds = [1, 2]", "sedes = [1, 2]", "unknown key 'sedes', did you mean 'seeds'?"),
        ("seeds = [1, 2]", "sedes = [1, 2]", "'seeds' is missing"),
        ("seeds = [1, 2]", "seeds = [1, 1]", "none twice"),
        ("seeds = [1, 2]", "seeds = []", "at least one"),
        ('base = "plain"', 'base = "plane"', "base = 'plane' is no arm, did you mean 'plain'?"),
        ("noise.ratio = 1.0", "nose.ratio = 1.0", "unknown key 'arms.few crops.nose', did you mean 'noise'?"),
        ("noise.ratio = 1.0", "noise.ration = 1.0", "Did you mean 'noise.ratio'?"),
        ("noise.ratio = 1.0", "noise.ratio = -1.0", "arm 'few crops'"),
        ("data.real.crops", "data.real.crop", "did you mean 'crops'?"),
        ("data.real.crops = 100", "data.real.crops = -1", "greater than or equal to 0"),
        ("data.real.crops = 100", "data.other.crops = 100", "data 'other' of arm 'few crops' has no path"),
        ("data.rendered.crops = 0", 'data.other.path = "x"', "arm 'few crops' gives a share to some of its data only"),
        ("data.real.crops = 100", "data.real.crops = 0", "arm 'few crops' has no data to train on"),
        ("noise.ratio = 1.0", 'against = "plane"', "few crops.against = 'plane' is no arm, did you mean 'plain'?"),
        ("[arms.plain]", "[arms.plain]\nzero_label = true", "arm 'plain' has zero_label and no pre-trained start"),
        ('"pretrain"', '"arm:plane"', "start of arm 'few crops': 'plane' is no arm above it, did you mean 'plain'?"),
        ("[arms.plain]", "[arms.plain]\nstart = 'arm:few crops'", "arm 'plain': 'few crops' is no arm above it"),
        ('"pretrain"', '"arm:plain"\nzero_label = true', "which was trained on labelled crops"),
        ("start =", "seconds = 1.0\nstart =", "exclude each other"),
        ("[tests]", "[tests", "is not valid TOML"),
    ],
)  # fmt: skip
def test_one_line_for_every_mistake(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GRID
    with pytest.raises(UserError) as raised:
        load_grid(written(tmp_path, GRID.replace(old, new)))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    broken = GRID.replace("seeds", "sedes").replace("noise.ratio", "nose.ratio")
    with pytest.raises(UserError) as raised:
        load_grid(written(tmp_path, broken))
    assert all(part in str(raised.value) for part in ("'sedes'", "'seeds' is missing", "nose"))


def test_a_grid_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no grid at"):
        load_grid(tmp_path / "none.toml")


def test_the_grids_in_the_repository_are_sound() -> None:
    found = sorted((Path(__file__).resolve().parents[3] / "recipes").glob("ablate-*.toml"))
    assert found
    assert [load_grid(path).base for path in found]


def test_a_grid_is_not_offered_as_a_recipe() -> None:
    with pytest.raises(UserError, match="no recipe 'ablate-tiny'"):
        load_recipe("ablate-tiny")
