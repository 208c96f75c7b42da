"""What fixes a run of the recipe ``paper``: its sampling, its noise, and the stores and devices that it rejects."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dptr.cache.errors import UserError
from dptr.cache.row_set import RowSet
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import Embeddings
from dptr.cli import run_command
from dptr.pipeline.text.corpus import CorpusSettings
from dptr.pipeline.text.embed_text import EmbedTextSettings, embed_text
from dptr.trainer.data.prompt_batches import NoiseSource, PromptBatches
from dptr.trainer.pretrain import pretrain
from dptr.trainer.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
DIM = 8
COUNTS = [1, 1, 2, 4, 8, 64]
TOY = ["decoder.dim=16", "decoder.heads=2", "decoder.layers=1", "decoder.feed_forward=16", "pretrain.workers=0"]


def store(folder: Path, save_prompts: Callable[..., PromptStore]) -> PromptStore:
    """Six labels of given counts; row i's pooled vector is all i."""
    rows = len(COUNTS)
    embeddings = Embeddings(
        np.zeros((rows, DIM), np.float32),
        np.ones(rows, np.int64),
        np.arange(rows, dtype=np.float32)[:, None].repeat(DIM, 1),
    )
    labels = ["a", "b", "c", "aa", "bb", "cc"]
    catalogue = pa.table(
        {
            "label": labels,
            "label_length": pa.array([len(label) for label in labels], pa.int16()),
            "count": pa.array(COUNTS),
            "source": ["x"] * rows,
        }
    )
    return save_prompts(folder, catalogue, embeddings, "abc")


def drawn(store: PromptStore, *changes: str) -> Counter[int]:
    recipe = load_recipe("paper", ["pretrain.batch_size=6", *changes])
    batches = PromptBatches(store, None, RowSet.of(np.arange(len(store)), len(store)), recipe)
    return Counter(
        row for number in range(400) for row in batches(number).memory.to("cpu").tokens[:, 0, 0].long().tolist()
    )


def test_labels_come_as_often_as_crops_bear_them(tmp_path: Path, save_prompts: Callable[..., PromptStore]) -> None:
    """The authors go through their crops; a store has each label once, so 64 of 80 draws must be of the last."""
    made = store(tmp_path, save_prompts)
    rows = drawn(made)
    assert rows.total() == 2400
    assert rows[5] / 2400 == pytest.approx(64 / 80, abs=0.03)
    assert rows[3] / 2400 == pytest.approx(4 / 80, abs=0.02)
    assert drawn(made, 'pretrain.sampling="uniform"')[5] == 400


def test_noise_of_the_paper_has_the_same_token_positions_in_all_rows_and_no_crop_twice(
    tmp_path: Path, save_bank: Callable[..., OrpBank]
) -> None:
    values = (1000 * np.arange(12)[:, None] + np.arange(8))[:, :, None].repeat(DIM, 2)
    bank = save_bank(tmp_path, values)

    def drawn_of(*changes: str) -> tuple[int, int]:
        noise = NoiseSource(bank, load_recipe("paper", changes).noise, None)
        values = noise.draw(np.arange(10), 5, np.random.default_rng(0)).widened()[:, :, 0].astype(int)
        return len(set((values[:, 0] // 1000).tolist())), len({tuple(row) for row in (values % 1000).tolist()})

    assert drawn_of() == (10, 1)
    crops, positions = drawn_of("noise.whole_batch=false")
    assert crops < 10
    assert positions == 10
    more = NoiseSource(bank, load_recipe("paper").noise, None)
    assert more.draw(np.arange(50), 20, np.random.default_rng(0)).widened().shape == (50, 20, DIM)


@pytest.mark.parametrize(
    ("unpinned", "named"),
    [
        ([], "--clip openai/clip-vit-base-patch16, those in .* have tiny"),
        (["clip"], "--context full, those in .* have content"),
        (["clip", "context"], "--charset 94, those in .* have one of 36 characters"),
    ],
)
def test_a_store_of_another_clip_context_or_charset_is_rejected_by_name(
    unpinned: list[str], named: str, tmp_path: Path
) -> None:
    (tmp_path / "words.txt").write_text("red oak elm")
    settings = EmbedTextSettings(CorpusSettings(charset="36"))
    embed_text([str(tmp_path / "words.txt")], tmp_path / "prompts", settings)
    recipe = load_recipe("paper", [*TOY, *(f'pretrain.{key}=""' for key in unpinned)])
    with pytest.raises(UserError, match=f"made with {named}"):
        pretrain(PromptStore(tmp_path / "prompts"), None, None, recipe, tmp_path / "run")


def test_the_advice_to_lift_a_pin_works_and_a_cpu_needs_yes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "words.txt").write_text(" ".join(f"word{number}" for number in range(40)))
    workspace = ["--workspace", str(tmp_path / "w"), "--quiet", "--device", "cpu"]
    assert run_command(["embed-text", str(tmp_path / "words.txt"), *workspace]) == 0
    toy = [part for change in (*TOY, "noise.ratio=0", "pretrain.batch_size=4") for part in ("--set", change)]
    train = ["pretrain", "--recipe", "paper", "--steps", "2", *toy, *workspace]
    capsys.readouterr()
    assert run_command(train) == 2
    assert "sized for a GPU, and this is a CPU" in capsys.readouterr().err
    assert run_command([*train, "--yes"]) == 2
    assert "--set 'pretrain.clip=\"\"'" in capsys.readouterr().err
    unpinned = [part for key in ("clip", "context") for part in ("--set", f'pretrain.{key}=""')]
    assert run_command([*train, "--yes", *unpinned]) == 0


def test_the_method_page_lists_each_difference_with_the_key_that_the_recipe_sets() -> None:
    """Keys of the page's table are in the recipe with the same values, and whatever the recipe changes is listed."""
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    table = page[page.index("| part | default here") : page.index('`decoder.refinement = "causal"`')]
    listed = dict(re.findall(r"`([a-z]+\.[a-z_]+) = ([^`]+)`", table))
    recipe, defaults = load_recipe("paper"), Recipe()
    for key, value in listed.items():
        section, name = key.split(".")
        assert getattr(getattr(recipe, section), name) == tomllib.loads(f"value = {value}")["value"], key
        assert getattr(getattr(recipe, section), name) != getattr(getattr(defaults, section), name), key
    # Sizes, the schedule and the machine are the paper's description of the model, not choices of its code.
    sizes = {"heads", "layers", "dim", "feed_forward", "channels"}
    schedule = {"steps", "batch_size", "learning_rate", "precision", "workers", "validate_every", "checkpoint_every"}
    variants = {
        f"{section}.{name}"
        for section in Recipe.model_fields
        for name, value in getattr(recipe, section).model_dump(exclude_defaults=True).items()
        if name not in sizes | schedule | {"needs_gpu", "adapts"}
    }
    assert variants == set(listed)


def test_options_on_the_method_page_are_those_of_the_reproduction_page() -> None:
    method, reproduce = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("method.md", "reproduce.md"))
    options = re.findall(r"`(?:embed-text |build-orp-bank |evaluate )?(--[a-z-]+(?: [^`]+)?)`", method)
    assert len(options) == 6
    variables = dict(re.findall(r"\$?([A-Z]+)=\$\{[A-Z]+:-([^}]+)\}", reproduce))
    spelt_out = reproduce.replace("$CLIP", variables["CLIP"])
    missing = [option for option in options if option not in spelt_out]
    assert missing == []
