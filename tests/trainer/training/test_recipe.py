"""Recipes: what is out of its range is one line, and what is in it survives its file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dptr.cache.errors import UserError
from dptr.cache.text.charset import Charset
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.recipe import Recipe, load_recipe, load_saved_recipe, parse_recipe, recipe_to_toml

SECTIONS: dict[str, Any] = {name: field.annotation for name, field in Recipe.model_fields.items()}
NUMBERS = [
    (section, key)
    for section, kind in SECTIONS.items()
    for key, field in kind.model_fields.items()
    if field.annotation in (int, float)
]


@pytest.mark.parametrize(
    "path",
    sorted(Path(__file__).parents[3].glob("recipes/*.toml")),
    ids=lambda path: path.stem,
)
def test_bundled_recipes_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path.stem)
    (tmp_path / "recipe.toml").write_text(recipe_to_toml(recipe), encoding="utf-8")
    assert load_recipe(str(tmp_path / "recipe.toml")) == recipe


def values_of(field: Any) -> st.SearchStrategy[Any]:
    """Draw what a key may be; text of every kind, with quotes, backslashes, line ends and beyond ASCII."""
    if get_origin(field.annotation) is Literal:
        return st.sampled_from(get_args(field.annotation))
    if field.annotation is bool:
        return st.booleans()
    if field.annotation is str:
        return st.text(st.characters(exclude_categories=["Cs"]))
    limits = {
        name: getattr(limit, name)
        for limit in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if hasattr(limit, name)
    }
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    if field.annotation is int:
        return st.integers(low, high - ("lt" in limits))
    return st.floats(low, high, exclude_min="gt" in limits, exclude_max="lt" in limits)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    values: dict[str, dict[str, Any]] = {
        section: {key: draw(values_of(field)) for key, field in kind.model_fields.items()}
        for section, kind in SECTIONS.items()
    }
    for section in ("decoder", "encoder"):
        values[section]["heads"] = math.gcd(values[section]["heads"], values[section]["dim"])
    return parse_recipe(values, "here")


@settings(max_examples=60, deadline=None)
@given(recipes())
def test_every_recipe_survives_a_round_trip(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(recipe_to_toml(recipe), encoding="utf-8")
    assert load_recipe(str(path)) == recipe


@pytest.mark.parametrize(("section", "key"), NUMBERS)
def test_numbers_out_of_range_are_one_line(section: str, key: str) -> None:
    for text in ("-1", "nan", "inf", "-inf", "1e400", f"1{'0' * 40}", "true", "[1]", "much"):
        with pytest.raises(UserError) as caught:
            load_recipe("tiny", [f"{section}.{key}={text}"])
        line = str(caught.value)
        assert f"{section}.{key} = " in line
        assert "Give a" in line
        assert "\n" not in line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("finetune.batch_size=0", "finetune.batch_size = 0 .*from 1 to 1,000,000"),
        ("pretrain.learning_rate=0", r"learning_rate = 0\b.*a number above 0"),
        ("decoder.dropout=1.5", "decoder.dropout = 1.5 .*a number from 0 below 1"),
        ("decoder.heads=5", "decoder.dim = 192 is not a multiple of decoder.heads = 5"),
        ("encoder.heads=7", "encoder.dim = 128 is not a multiple of encoder.heads = 7"),
        ("noise.draw=near", "one of: random, nearest, mixed, gaussian"),
        ("pretrain.steps=1.5", "pretrain.steps = 1.5 .*whole number"),
        ("finetune.mix=3", "finetune.mix = 3 .*Give text"),
    ],
)
def test_what_cannot_be_used_is_named_with_its_range(change: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_recipe("tiny", [change])


def test_a_section_that_is_none_and_a_copy_out_of_range_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("noise = 3\n")
    with pytest.raises(UserError, match="not a section"):
        load_recipe(str(tmp_path / "recipe.toml"), ["noise.ratio=0.2"])
    with pytest.raises(UserError, match=r"decoder\.layers = 0"):
        Recipe().replace("decoder", layers=0)


@pytest.mark.parametrize("name", ["no/such.toml", ".", "x" * 5000, "a\0b"])
def test_a_name_that_is_no_recipe_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match="no recipe"):
        load_recipe(name)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = ", b"a = " + b"[" * 50_000, b"a = 1" + b"0" * 5000])
def test_a_file_that_is_no_toml_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(content)
    with pytest.raises(UserError, match=r"recipe\.toml is not"):
        load_recipe(str(tmp_path / "recipe.toml"))


def test_a_saved_recipe_is_read_without_sections_of_other_programs() -> None:
    recipe = load_saved_recipe("[finetune]\nsteps = 7\n[clip]\nphotos = 8\n", "a run")
    assert recipe.finetune.steps == 7
    for text in ("finetune = 1", 'finetune = "held_back"', "finetune = []"):
        with pytest.raises(UserError, match="finetune"):
            load_saved_recipe(text, "it")


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("pretrain.steps=0", r"in --set pretrain\.steps=0 cannot be used"),
        ("noise.ratoi=1", r"unknown key 'noise\.ratoi' in --set noise\.ratoi=1.*'noise\.ratio'"),
        ("nosie.ratio=1", r"unknown key 'nosie' in --set nosie\.ratio=1"),
        ("decoder.heads=5", r"\(--set decoder\.heads=5, .*tiny\.toml\)"),
    ],
)
def test_an_error_of_an_option_names_the_option(change: str, where: str) -> None:
    with pytest.raises(UserError, match=where):
        load_recipe("tiny", ["pretrain.seed=1", change])


def test_fmu_heads_that_do_not_divide_the_memory_are_one_line() -> None:
    recipe = Recipe().replace("fmu", heads=7)
    with pytest.raises(UserError, match=r"192 wide, not a multiple of fmu\.heads = 7"):
        Recognizer(recipe, Charset("ab"), 192)


def test_the_papers_recipe_has_what_the_authors_code_has() -> None:
    """Facts of their code and settings, written down apart from the recipe."""
    recipe = load_recipe("paper")
    recognizer = Recognizer(recipe, Charset.named("94"), 512)
    parameters = sum(parameter.numel() for parameter in recognizer.parameters())
    assert round(parameters / 1e6, 1) == 66.5
    assert recognizer.image_size == (32, 128)
    assert recognizer.encoder.positions.shape == (128, 512)
    assert recognizer.fmu.queries.shape == (26, 512)
    facts = {
        "decoder": {"kind": "parseq", "dim": 512, "heads": 8, "feed_forward": 2048, "layers": 6, "dropout": 0.1}
        | {"permutations": 6, "max_label_length": 25},
        "encoder": {"kind": "vit", "dim": 512, "heads": 8, "layers": 12, "patch_height": 4, "patch_width": 8},
        "fmu": {"kind": "queries", "queries": 26, "dropout": 0.1},
        "noise": {"ratio": 0.1, "draw": "random"},
        "pretrain": {"learning_rate": 1.485e-3, "batch_size": 768, "accumulate": 1, "weight_decay": 0.0}
        | {"schedule": "one-cycle", "warmup_share": 0.075, "clip_norm": 20.0},
    }
    for section, expected in facts.items():
        ours = getattr(recipe, section).model_dump()
        assert {key: ours[key] for key in expected} == expected, section
    # Twenty epochs over the labels of 15 million words.
    assert recipe.pretrain.steps * recipe.pretrain.batch_size == pytest.approx(20 * 15e6, rel=0.01)
