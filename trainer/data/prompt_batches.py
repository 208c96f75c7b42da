"""Batches of noisy memories with labels from a prompt store, and its split into training and validation rows.

The memory that a decoder is trained on comes in three kinds.

``tokens``: the authors' order, pooled vector, embeddings that all prompts share, embeddings of the prompt's own tokens.

``pooled``: the one vector of a prompt in CLIP's joint space, where an image's may take its place. Text and images lie
in two cones of that space, each round its own mean (the modality gap, Liang et al. 2022). Centred by its own side's
mean, a vector keeps what texts and images share.

``columns``: text embeddings laid out as an image's columns show a word, letter beside letter. Each subword token's
embedding stands over as many columns as its letters take up, right-to-left writing in visual order. Letters differ in
width and words in where they stand in a crop, so both are drawn anew each time; now and then a crop cuts into a word's
first or last letter.

Noise, embeddings of crops from an ORP bank, is drawn anew in every batch: per row, or, as in the authors' code, per
batch: no crop twice, and the same token positions in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dptr.cache.errors import UserError
from dptr.cache.row_set import RowSet, positions_of
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import StoredTokens
from dptr.cache.text import reading_order
from dptr.cache.text.charset import Charset
from dptr.cache.text.units import clusters
from dptr.trainer.data.batch_order import BatchOrder, WeightedRows
from dptr.trainer.data.stored_memory import StoredMemory, StoredTensor
from dptr.trainer.model.decoders.base import Memory, Targets, Tensors
from dptr.trainer.model.decoders.pooled import directions
from dptr.trainer.recipe import MemorySettings, NoiseSettings, Recipe
from dptr.trainer.seeds import generator_of

if TYPE_CHECKING:
    from dptr.cache.stores.neighbours import Neighbours
    from dptr.cache.stores.orp import OrpBank


@dataclass(frozen=True)
class PromptBatch(Tensors):
    """A batch of noisy memories with their labels."""

    memory: Memory | StoredMemory
    targets: Targets

    def __len__(self) -> int:
        return len(self.targets.inputs)

    def to(self, device: torch.device | str) -> PromptBatch:
        """Return the batch on a device, its memory put together."""
        return PromptBatch(self.memory.to(device), self.targets.to(device))

    def padded(self, positions: int) -> PromptBatch:
        """Return the batch in one of few shapes, its labels with at most ``positions``, the end's included."""
        memory = self.memory.padded_to_few() if isinstance(self.memory, StoredMemory) else self.memory
        return PromptBatch(memory, self.targets.padded(positions))


@dataclass(frozen=True)
class CountWeights:
    """Weights of a store's rows: their labels' counts to a power, 0 for those not among ``rows``."""

    store: PromptStore
    rows: RowSet
    power: float

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weights of ``rows``, of the same shape."""
        return np.where(self.rows.holds(rows), self.store.counts_of(rows).astype(np.float64) ** self.power, 0.0)


class PromptBatches:
    """Batch number -> :class:`PromptBatch`; a pure function of the recipe's seed and the number."""

    def __init__(
        self,
        store: PromptStore,
        noise: NoiseSource | None,
        rows: RowSet,
        recipe: Recipe,
        charset: Charset | None = None,
    ) -> None:
        """Labels are encoded with the run's ``charset``; None: the store's."""
        settings = recipe.pretrain
        weighted = None
        if settings.sampling == "count":
            weighted = WeightedRows(len(store), CountWeights(store, rows, settings.count_power))
        # The decoder's work grows with the label, the memory's with the tokens; labels cost more.
        self._order = BatchOrder(rows, store.label_lengths_of, settings.batch_size, settings.seed, weighted)
        self._store = store
        self._noise = noise
        self._ratio = recipe.noise.ratio
        self._memory = recipe.memory
        self._seed = settings.seed
        self._charset = charset or store.charset

    def __call__(self, number: int) -> PromptBatch:
        """Return batch ``number``, counted from 0 through all epochs."""
        rows = self._order.rows_of(number)
        generator = generator_of(self._seed, "noise", number)
        memory = noisy_memory(self._store, rows, self._noise, self._ratio, generator, self._memory)
        return PromptBatch(memory, Targets.of(self._store.labels_of(rows), self._charset))

    def require_finite(self, number: int) -> None:
        """Check what batch ``number`` was made of.

        Raises:
            DamagedStore: a row of the store or the bank holds NaN or infinity; the error names it.
        """
        self._store.require_finite(self._order.rows_of(number))
        if self(number).memory.to("cpu").tokens.isfinite().all():
            return
        # Noise, or the mean by which pooled vectors are centred.
        for store in [self._store] if self._noise is None else [self._store, self._noise.bank]:
            store.require_finite(np.arange(len(store)))


_PLACES = 1 << 32


def split_rows(store: PromptStore, recipe: Recipe) -> tuple[NDArray[np.int64], RowSet]:
    """Return the rows to validate on, at most ``validation_rows`` of those that are for it, and the rows to train on.

    The split depends only on label and seed, case-insensitive: case variants are on the same side, and growth of the
    store moves none. Made-up words are for training only: their accuracy does not describe the store's language.
    Validation rows are row numbers, int64 of shape (rows,), ascending.

    Raises:
        UserError: the store has too few labels.
    """
    settings = recipe.pretrain
    lowest = _Lowest(settings.validation_rows)

    limit = np.uint32(settings.validation_share * _PLACES)

    def trained_on() -> Iterator[NDArray[np.bool_]]:
        first = 0
        columns = store.rows.column("label_hash"), store.rows.column("made_up")
        for hashes, made_up in zip(*columns, strict=True):
            positions = positions_of(hashes, settings.seed)
            chosen = (positions < limit) & (made_up == 0)
            lowest.add(first + np.flatnonzero(chosen), positions[chosen])
            first += len(positions)
            yield ~chosen

    training = RowSet(trained_on())
    if not len(lowest.rows) or not len(training):
        raise UserError(
            f"{store.folder} has {len(store)} rows, too few to keep {settings.validation_share:g} for validation",
            "Embed at least 100 labels, or change pretrain.validation_share",
        )
    return np.sort(lowest.rows), training


class _Lowest:
    """The ``count`` rows of the lowest positions, of two equal ones the first."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.rows = np.zeros(0, np.int64)
        self._positions: NDArray[Any] = np.zeros(0)

    def add(self, rows: NDArray[np.int64], positions: NDArray[Any]) -> None:
        positions = np.concatenate([self._positions, positions])
        kept = np.argsort(positions, kind="stable")[: self._count]
        self.rows, self._positions = np.concatenate([self.rows, rows])[kept], positions[kept]


#: Enough for a mean over all numbers of their embeddings.
_CROPS_MEASURED = 256


class NoiseSource:
    """Draws ORP noise for rows of a prompt store, or normal numbers as large as that: noise that shows no picture.

    Args:
        bank: where the noise comes from. settings: how it is drawn.
        neighbours: each prompt's nearest crops; needed for ``nearest`` and ``mixed``.

    Raises:
        UserError: the neighbours are needed and missing.
    """

    def __init__(self, bank: OrpBank, settings: NoiseSettings, neighbours: Neighbours | None) -> None:
        if settings.needs_neighbours and neighbours is None:
            raise UserError(
                f"noise.draw = {settings.draw!r} needs each prompt's nearest crops, and there are none",
                "Run `dptr mine-neighbours`, or draw at random: --set noise.draw=random",
            )
        self.bank = bank
        self._settings = settings
        self._neighbours = neighbours
        self._size = _size_of_entries(bank) if settings.draw == "gaussian" else None

    def draw(self, rows: NDArray[np.int64], tokens: int, generator: np.random.Generator) -> StoredTokens:
        """Draw noise of shape (len(rows), tokens, dim): for each row one crop, and ``tokens`` of that crop's tokens.

        It comes in the precision that the bank stores. Tokens repeat within a row only when the crop has fewer than are
        needed. With ``whole_batch`` all rows share their positions, and crops repeat only when the bank has fewer than
        there are rows.
        """
        if self._size is not None:
            return StoredTokens(self._size * generator.standard_normal((len(rows), tokens, self.bank.dim), np.float32))
        crops = self._crops(rows, generator)
        available, drawn = self.bank.tokens_per_crop, 1 if self._settings.whole_batch else len(rows)
        if available >= tokens:
            positions = generator.random((drawn, available)).argsort(axis=1)[:, :tokens]
        else:
            positions = generator.integers(0, available, (drawn, tokens))
        positions = np.broadcast_to(positions, (len(rows), tokens))
        return self.bank.stored_tokens(crops, positions)

    def draw_pooled(self, rows: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.float32]:
        """Draw for each row where one crop's pooled vector points from the bank's mean: (rows, dim), of length one."""
        if self._size is not None:
            return _of_length_one(generator.standard_normal((len(rows), self.bank.dim), np.float32))
        vectors = self.bank.pooled_of(self._crops(rows, generator))
        return _of_length_one(vectors / np.linalg.norm(vectors, axis=1, keepdims=True) - self.bank.pooled_mean)

    def _crops(self, rows: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        if self._settings.whole_batch and len(rows) <= len(self.bank):
            anywhere = generator.choice(len(self.bank), len(rows), replace=False)
        else:
            anywhere = generator.integers(0, len(self.bank), len(rows))
        if self._neighbours is None or not self._settings.needs_neighbours:
            return anywhere
        nearest = self._neighbours.of(rows)
        near: NDArray[np.int64] = nearest[np.arange(len(rows)), generator.integers(0, nearest.shape[1], len(rows))]
        if self._settings.draw == "nearest":
            return near
        wants_near = generator.random(len(rows)) < self._settings.nearest_share
        return np.asarray(np.where(wants_near, near, anywhere), np.int64)


def _of_length_one(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return scaled


def _size_of_entries(bank: OrpBank) -> np.float32:
    """Return the root mean square of the numbers in the bank's embeddings, from crops spread evenly over it."""
    crops = np.unique(np.linspace(0, len(bank) - 1, _CROPS_MEASURED).astype(np.int64))
    positions = np.broadcast_to(np.arange(bank.tokens_per_crop), (len(crops), bank.tokens_per_crop))
    return np.float32(np.sqrt(np.mean(np.square(bank.tokens(crops, positions).astype(np.float32)))))


def text_memory(store: PromptStore, rows: NDArray[np.int64]) -> StoredMemory:
    """Gather ``rows``, shape (batch,), as ``[pooled; prefix; embeddings]``, padded to the longest row."""
    embeddings = store.stored_embeddings(rows)
    starts, own = np.cumsum(embeddings.lengths) - embeddings.lengths, np.arange(int(embeddings.lengths.max()))
    places = np.where(own < embeddings.lengths[:, None], starts[:, None] + own, -1)
    stored, pooled = StoredTensor.of(embeddings.tokens), torch.from_numpy(embeddings.pooled)
    if len(store.prefixes) == 1:
        return StoredMemory(stored, torch.from_numpy(places), pooled, torch.from_numpy(store.prefix))
    return StoredMemory(
        stored,
        torch.from_numpy(_behind_prefixes(store, rows, places, embeddings.lengths)),
        pooled,
        shared=torch.from_numpy(np.concatenate(store.prefixes)),
    )


def _behind_prefixes(
    store: PromptStore, rows: NDArray[np.int64], places: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return ``places`` (batch, own) behind those of each row's prefix, which count on from the embeddings' last."""
    shared = np.array([len(prefix) for prefix in store.prefixes])
    which = store.templates_of(rows)
    firsts, before = (lengths.sum() + np.cumsum(shared) - shared)[which, None], shared[which, None]
    at = np.arange(int((before[:, 0] + lengths).max()))
    padded = np.pad(places, ((0, 0), (0, 1)), constant_values=-1)
    own = np.take_along_axis(padded, np.clip(at - before, 0, places.shape[1]), axis=1)
    return np.where(at < before, firsts + at, own)


def noisy_memory(
    store: PromptStore,
    rows: NDArray[np.int64],
    noise: NoiseSource | None,
    ratio: float,
    generator: np.random.Generator,
    settings: MemorySettings,
) -> Memory | StoredMemory:
    """Return a memory of the recipe's kind, with noise of size ``ratio``."""
    if settings.kind == "pooled":
        return pooled_memory(store, rows, noise, ratio, settings.centred, generator)
    if settings.kind == "columns":
        return column_memory(store, rows, noise, ratio, settings.columns, generator)
    return token_memory(store, rows, noise, ratio, generator)


def token_memory(
    store: PromptStore,
    rows: NDArray[np.int64],
    noise: NoiseSource | None,
    ratio: float,
    generator: np.random.Generator,
) -> StoredMemory:
    """Return text embeddings of ``rows``, shape (batch,), plus ``ratio`` times ORP noise; padding stays masked."""
    memory = text_memory(store, rows)
    if noise is None or ratio == 0:
        return memory
    return memory.with_noise(noise.draw(rows, memory.tokens, generator), ratio)


def pooled_memory(
    store: PromptStore,
    rows: NDArray[np.int64],
    noise: NoiseSource | None,
    ratio: float,
    centred: bool,
    generator: np.random.Generator,
) -> Memory:
    """Return the pooled text vectors of ``rows``, of length one, as memories of one token: (batch, 1, dim).

    Noise points where a photo crop's centred vector does; its length is drawn evenly from 0 to ``ratio``.
    """
    vectors = directions(torch.from_numpy(store.pooled(rows)), torch.from_numpy(store.pooled_mean) if centred else None)
    if noise is not None and ratio > 0:
        drawn = torch.from_numpy(noise.draw_pooled(rows, generator))
        lengths = torch.from_numpy(generator.uniform(0, ratio, (len(rows), 1)).astype(np.float32))
        vectors = vectors + lengths * drawn
    return Memory(vectors[:, None])


#: Standard deviation of the logarithm of a letter's width: an i against an m.
_WIDTHS = 0.3
#: Most of a word's outer letter that is cut away, and most of the columns beside the word, as a share of all.
_MOST_CUT, _MOST_MARGIN = 0.3, 0.15


def column_memory(
    store: PromptStore,
    rows: NDArray[np.int64],
    noise: NoiseSource | None,
    ratio: float,
    columns: int,
    generator: np.random.Generator,
) -> StoredMemory:
    """Return the embeddings of ``rows`` as feature columns plus ``ratio`` times ORP noise: (batch, columns, dim).

    Columns beside the word are zero except for noise. The pooled vector and the tokens of the template and the end are
    excluded.

    Raises:
        UserError: the store does not hold its tokens' letters, or a label has more letters than there are columns.
    """
    letters = store.token_letters(rows)
    seen = _places_seen(store, rows) if store.charset.order == "visual" else [None] * len(rows)
    embeddings = store.stored_embeddings(rows)
    places = np.full((len(rows), columns), -1)
    starts = np.cumsum(embeddings.lengths) - embeddings.lengths
    for row, (start, counts, order) in enumerate(zip(starts.tolist(), letters, seen, strict=True)):
        shown = place_letters(int(counts.sum()), columns, generator)
        if order is not None:
            shown = np.where(shown >= 0, order[shown], -1)
        of_letter = np.repeat(np.arange(len(counts)), counts)
        inside = shown >= 0
        places[row, inside] = start + of_letter[shown[inside]]
    memory = StoredMemory(StoredTensor.of(embeddings.tokens), torch.from_numpy(places), padded=False)
    if noise is None or ratio == 0:
        return memory
    return memory.with_noise(noise.draw(rows, columns, generator), ratio)


def _places_seen(store: PromptStore, rows: NDArray[np.int64]) -> list[NDArray[np.int64] | None]:
    """Return of the labels of ``rows`` which of their characters stands where, from left to right."""
    places: list[NDArray[np.int64] | None] = []
    for label in store.labels_of(rows):
        if not reading_order.runs_right_to_left(label):
            places.append(None)
            continue
        found = clusters(label)
        ends = np.cumsum([len(cluster) for cluster in found])
        _, order = reading_order.seen(found)
        places.append(np.concatenate([np.arange(ends[place] - len(found[place]), ends[place]) for place in order]))
    return places


def place_letters(letters: int, columns: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return each column's letter by index, shape (columns,), -1 beside the word: in order, each letter at least once.

    Raises:
        UserError: more letters than columns.
    """
    if letters > columns:
        raise UserError(f"a label of {letters} letters does not fit into {columns} columns", "Raise memory.columns")
    widths = np.exp(generator.normal(0, _WIDTHS, letters))
    for end in (0, -1):
        widths[end] *= 1 - generator.uniform(0, _MOST_CUT)
    free = columns - letters
    left, right = (generator.uniform(0, _MOST_MARGIN, 2) * free).astype(int)
    # One column each, and what is left of the word's width in proportion to the letters' widths.
    edges = np.round(np.cumsum(widths) / widths.sum() * (free - left - right)).astype(int)
    counts = 1 + np.diff(edges, prepend=0)
    shown = np.repeat(np.arange(letters), counts)
    return np.concatenate([np.full(left, -1), shown, np.full(right, -1)])
