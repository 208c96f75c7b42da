"""From a store's rows to batches: the order, the memory, the noise; and loading weights that do not quite fit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.progress import set_quiet
from dptr.cache.row_set import EveryRow, positions_of
from dptr.cache.stores.neighbours import Neighbours
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompt_rows import MADE_UP
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import Embeddings
from dptr.cache.text.charset import Charset
from dptr.pipeline.text.corpus import CorpusSettings
from dptr.pipeline.text.embed_text import EmbedTextSettings, embed_text
from dptr.trainer import pretrain as stage
from dptr.trainer.data.batch_order import BatchOrder
from dptr.trainer.data.prompt_batches import NoiseSource, split_rows, text_memory, token_memory
from dptr.trainer.finetune import load_weights
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Decoder, DecoderShape, Memory, Targets
from dptr.trainer.pretrain import pretrain
from dptr.trainer.recipe import DecoderSettings, NoiseSettings, Recipe

DIM = 4
CHARSET = Charset("abc")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, save_prompts: Callable[..., PromptStore]) -> PromptStore:
    """Forty prompts of one to three own tokens; row i's tokens are all i, the prefix is -1, pooled is 100 + i."""
    folder = tmp_path_factory.mktemp("prompts")
    rows = 40
    lengths = np.arange(rows) % 3 + 1
    embeddings = Embeddings(
        np.repeat(np.arange(rows, dtype=np.float32), lengths)[:, None].repeat(DIM, 1),
        lengths,
        np.full((rows, DIM), 100, np.float32) + np.arange(rows, dtype=np.float32)[:, None],
    )
    labels = [("abc" * 3)[: i % 5 + 1] for i in range(rows)]
    catalogue = pa.table(
        {
            "label": labels,
            "label_length": pa.array([len(label) for label in labels], pa.int16()),
            "count": pa.array(np.arange(rows) + 1),
            "source": ["x"] * rows,
        }
    )
    return save_prompts(folder, catalogue, embeddings, "abc")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, save_bank: Callable[..., OrpBank]) -> OrpBank:
    """Three crops of eight tokens; token t of crop c is 1000 c + t."""
    values = (1000 * np.arange(3)[:, None] + np.arange(8))[:, :, None].repeat(DIM, 2)
    return save_bank(tmp_path_factory.mktemp("orp"), values)


def test_memory_is_pooled_then_prefix_then_own_embeddings(store: PromptStore) -> None:
    memory = text_memory(store, np.array([7, 2])).to("cpu")
    assert memory.tokens[:, :, 0].tolist() == [[107, -1, -1, 7, 7, 0], [102, -1, -1, 2, 2, 2]]
    assert memory.padding is not None
    assert memory.padding.tolist() == [[False] * 5 + [True], [False] * 6]


def test_noise_is_drawn_per_row_scaled_and_reproducible(store: PromptStore, bank: OrpBank) -> None:
    rows = np.arange(20)
    noise = NoiseSource(bank, NoiseSettings(), None)
    clean = token_memory(store, rows, None, 0.0, np.random.default_rng(0)).to("cpu").tokens
    noisy = token_memory(store, rows, noise, 0.5, np.random.default_rng(0)).to("cpu").tokens
    drawn = ((noisy - clean) / 0.5)[:, :, 0].round().long()
    crops, positions = drawn // 1000, drawn % 1000
    assert (crops == crops[:, :1]).all(), "a row draws from one crop"
    assert len(crops[:, 0].unique()) == 3
    assert all(len(row.unique()) == len(row) for row in positions), "no token twice while there are enough"
    assert len({tuple(row.tolist()) for row in positions}) > 10, "rows draw apart"
    again = token_memory(store, rows, noise, 0.5, np.random.default_rng(0)).to("cpu").tokens
    assert torch.equal(noisy, again)


def test_a_crop_with_too_few_tokens_repeats_them(bank: OrpBank) -> None:
    drawn = NoiseSource(bank, NoiseSettings(), None).draw(np.arange(5), 30, np.random.default_rng(0)).widened()
    crops, positions = np.divmod(drawn[:, :, 0].round().astype(int), 1000)
    assert positions.shape == (5, 30)
    assert (crops == crops[:, :1]).all(), "a row draws from one crop"
    for row in positions:
        assert bank.tokens_per_crop / 2 < len(set(row.tolist())) <= bank.tokens_per_crop < 30


def test_nearest_and_mixed_noise_come_from_the_neighbours(bank: OrpBank) -> None:
    class Nearest(Neighbours):
        def __init__(self) -> None:
            pass

        def of(self, rows: np.ndarray) -> np.ndarray:
            return np.full((len(rows), 4), 2)

    rows, generator = np.arange(300), np.random.default_rng(0)
    nearest = NoiseSource(bank, NoiseSettings(draw="nearest"), Nearest()).draw(rows, 1, generator).widened()
    assert (nearest // 1000 == 2).all()
    settings = NoiseSettings(draw="mixed", nearest_share=0.5)
    mixed = NoiseSource(bank, settings, Nearest()).draw(rows, 1, generator).widened()
    share = float((mixed[:, 0, 0] // 1000 == 2).mean())
    assert 0.55 < share < 0.8  # a half from the neighbours, and a third of the rest by chance


def test_gaussian_noise_is_as_large_as_the_banks_embeddings_and_shows_none_of_them(bank: OrpBank) -> None:
    rows = np.arange(400)
    noise = NoiseSource(bank, NoiseSettings(draw="gaussian"), None)
    drawn = noise.draw(rows, 3, np.random.default_rng(0)).widened()
    assert drawn.shape == (400, 3, DIM)
    embeddings = bank.tokens(np.arange(len(bank)), np.tile(np.arange(bank.tokens_per_crop), (len(bank), 1)))
    size = np.sqrt(np.mean(embeddings.astype(np.float64) ** 2))
    assert np.sqrt(np.mean(drawn.astype(np.float64) ** 2)) == pytest.approx(size, rel=0.05)
    assert abs(drawn.mean()) < 0.05 * size, "round zero, wherever the embeddings lie"
    assert np.array_equal(drawn, noise.draw(rows, 3, np.random.default_rng(0)).widened())
    pooled = noise.draw_pooled(rows, np.random.default_rng(0))
    assert np.allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-5)
    assert np.abs(pooled.mean(0)).max() < 0.1, "in every direction alike"


def test_batches_hold_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 20, 20000)
    order = BatchOrder(EveryRow(20000), lengths.__getitem__, 64, seed=0)
    batches = [lengths[order.rows_of(step)] for step in range(order.batches_per_epoch)]
    padded = sum(len(batch) * batch.max() for batch in batches)
    assert padded < 1.05 * lengths.sum()
    means = np.array([batch.mean() for batch in batches[:64]])
    assert abs(np.corrcoef(means, np.arange(64))[0, 1]) < 0.5, "lengths come in no order"


@pytest.fixture
def store_of(tmp_path: Path, save_prompts: Callable[..., PromptStore]) -> Callable[[str, list[str]], PromptStore]:
    """Name, labels -> a store; each label has one token, zero."""

    def made(name: str, words: list[str]) -> PromptStore:
        zeros = np.zeros((len(words), 2), np.float32)
        columns = {"label": words, "label_length": pa.array(map(len, words), pa.int16())}
        embeddings = Embeddings(zeros, np.ones(len(words), np.int64), zeros)
        return save_prompts(tmp_path / name, pa.table(columns), embeddings, "".join(sorted(set("".join(words)))))

    return made


def test_growth_of_a_store_moves_no_validation_row(store_of: Callable[[str, list[str]], PromptStore]) -> None:
    recipe = Recipe().replace("pretrain", validation_rows=100_000)
    words = [f"word{number}" for number in range(20_000)]
    small = store_of("small", words[:2000])
    large = store_of("large", [*reversed(words), *(word.upper() for word in words)])
    chosen = [set(store.labels_of(split_rows(store, recipe)[0])) for store in (small, large)]
    assert len(chosen[0]) == pytest.approx(100, abs=40)
    assert chosen[0] <= chosen[1]
    assert {word for word in chosen[1] if word in words[:2000]} == chosen[0]
    assert {word.lower() for word in chosen[1] if word.isupper()} == {word for word in chosen[1] if word.islower()}


def test_seeds_hold_out_labels_of_their_own(store_of: Callable[[str, list[str]], PromptStore]) -> None:
    store = store_of("prompts", [f"word{number}" for number in range(20_000)])
    recipes = [Recipe().replace("pretrain", validation_rows=100_000, seed=seed) for seed in range(4)]
    chosen = [set(split_rows(store, recipe)[0].tolist()) for recipe in recipes]
    for one, other in combinations(chosen, 2):
        assert len(one) == pytest.approx(1000, abs=150)
        assert len(one & other) == pytest.approx(50, abs=40), "as often as chance has it"


def test_words_that_were_made_up_are_trained_on_and_never_held_out(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\n".join(f"word{number}" for number in range(60)), encoding="utf-8")
    corpus = CorpusSettings(charset="36")
    embed_text([str(tmp_path / "words.txt")], tmp_path / "prompts", EmbedTextSettings(corpus=corpus, cover_subwords=1))
    store = PromptStore(tmp_path / "prompts")
    recipe = Recipe().replace("pretrain", validation_share=0.5, validation_rows=1000)
    is_made_up = np.array([source == MADE_UP for source in store.catalogue(["source"])["source"].to_pylist()])
    assert is_made_up.sum() > 50, "or this shows nothing"
    positions = positions_of(np.concatenate(list(store.rows.column("label_hash"))), recipe.pretrain.seed)
    before = np.flatnonzero(positions < 2**31)
    validation, training = split_rows(store, recipe)
    assert is_made_up[before].any()
    assert set(validation) == {row for row in before if not is_made_up[row]}
    assert training.holds(np.flatnonzero(is_made_up)).all()
    assert len(training) == len(store) - len(validation)


def test_no_more_validation_rows_are_read_than_asked_for_and_none_is_trained_on(store: PromptStore) -> None:
    recipe = Recipe().replace("pretrain", validation_share=0.6, validation_rows=7)
    validation, training = split_rows(store, recipe)
    labels = store.labels.to_pylist()
    assert 0 < len(validation) <= 7
    assert not {labels[row] for row in validation} & {labels[row] for row in training[np.arange(len(training))]}


@pytest.mark.parametrize(("rows", "told"), [(100_000, True), (3, False), (1000, False)])
def test_fewer_validation_rows_than_asked_for_are_told(
    rows: int, told: bool, store: PromptStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe().replace("decoder", dim=8, heads=2, feed_forward=16, layers=1)
    recipe = recipe.replace("pretrain", steps=1, batch_size=4, validation_share=0.6, validation_rows=rows)
    recipe = recipe.replace("noise", ratio=0.0)
    set_quiet(False)
    pretrain(store, None, None, recipe, tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if "pretrain.validation_rows" in line]
    assert len(said) == told
    if told:
        validation = len(split_rows(store, recipe)[0])
        assert said[0].startswith(f"validating on {validation:,} labels, not 100,000")


@pytest.mark.parametrize("draw", ["nearest", "mixed"])
def test_noise_of_neighbours_without_neighbours_is_an_error(bank: OrpBank, draw: Any) -> None:
    with pytest.raises(UserError, match="mine-neighbours"):
        NoiseSource(bank, NoiseSettings(draw=draw), None)


def test_a_changed_charset_and_length_carry_over_what_both_have() -> None:
    settings = DecoderSettings(dim=8, heads=2, layers=2, feed_forward=16, max_label_length=5)
    old, new = Charset("abc"), Charset("cbx")
    source = build_decoder(settings, 3, DIM)
    target = build_decoder(settings.model_copy(update={"max_label_length": 7}), 3, DIM)
    coverage = load_weights(target, source.state_dict(), old, new)
    assert set(coverage.partial) == {"head.weight", "head.bias", "embedding.weight", "positions"}
    assert not coverage.missing
    assert not coverage.extra
    assert torch.equal(target.head.weight[1], source.head.weight[3])  # c
    assert torch.equal(target.embedding.weight[2], source.embedding.weight[2])  # b
    assert torch.equal(target.embedding.weight[new.begin], source.embedding.weight[old.begin])
    assert torch.equal(target.state_dict()["positions"][:6], source.state_dict()["positions"])
    assert len(load_weights(build_decoder(settings, 3, DIM), source.state_dict(), old, old).lines()) == 1


def test_coverage_names_what_does_not_fit() -> None:
    small = torch.nn.Linear(2, 2)
    coverage = load_weights(small, {"weight": torch.zeros(3, 2), "other": torch.zeros(1)})
    assert list(coverage.mismatched) == ["weight"]
    assert coverage.missing == ["bias"]
    assert coverage.extra == ["other"]


def tiny(**pretrain: Any) -> Recipe:
    made = Recipe().replace("decoder", dim=8, heads=2, layers=1, feed_forward=8, max_label_length=5, kind="nrtr")
    return made.replace("pretrain", **{"steps": 4, "batch_size": 8, "validation_share": 0.3, **pretrain})


@pytest.mark.parametrize("spoilt", ["prompts", "orp"])
def test_a_row_that_is_not_finite_is_named(
    tmp_path: Path,
    save_prompts: Callable[..., PromptStore],
    save_bank: Callable[..., OrpBank],
    bank: OrpBank,
    spoilt: str,
) -> None:
    tokens = np.ones((60, DIM), np.float32)
    if spoilt == "prompts":
        tokens[::3] = np.nan
    embeddings = Embeddings(tokens, np.ones(60, np.int64), np.ones((60, DIM), np.float32))
    columns = {
        "label": [letters * 2 + other for letters in "abc" for other in ("a" * n + "b" for n in range(20))],
        "label_length": pa.array(np.full(60, 5), pa.int16()),
        "count": np.ones(60, np.int64),
        "source": ["x"] * 60,
    }
    columns["label"] = [label[:5] for label in columns["label"]]
    store = save_prompts(tmp_path / "prompts", pa.table(columns), embeddings, "abc")
    if spoilt == "orp":
        values = np.ones((3, 8, DIM), np.float32)
        values[1, 1] = np.inf
        bank = save_bank(tmp_path / "orp", values)
    where = r"row \d+ of .*prompts/part-00000\.arrow" if spoilt == "prompts" else r"row 1 of .*orp/part-00000\.arrow"
    with pytest.raises(DamagedStore, match=where + " holds NaN or infinity"):
        pretrain(store, bank, None, tiny(), tmp_path / "run")


def test_noise_of_validation_depends_on_the_recipes_seed(store: PromptStore, bank: OrpBank) -> None:
    class Watched(Decoder):
        """Keeps what it is asked to decode."""

        seen: tuple[torch.Tensor, ...] = ()

        def loss(self, memory: Memory, targets: Targets) -> torch.Tensor:
            raise NotImplementedError

        def decode(self, memory: Memory, max_length: int | None = None) -> torch.Tensor:
            self.seen += (memory.tokens,)
            return torch.zeros(len(memory.tokens), 1, 5)

    def decoded(seed: int) -> torch.Tensor:
        watched, noise = Watched(DecoderShape(4, DIM, 2, 1, 4, 0.0, 3, 5)), NoiseSource(bank, NoiseSettings(), None)
        stage.validate(watched, store, noise, np.arange(6), tiny(seed=seed), CHARSET, torch.device("cpu"))
        return torch.cat(watched.seen)

    assert torch.equal(decoded(0), decoded(0))
    assert not torch.equal(decoded(0), decoded(1))
