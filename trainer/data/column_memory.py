"""Memory of kind ``columns``: text embeddings laid out as an image's columns show a word, letter beside letter.

Each piece's state stands over as many columns as its letters would take up, right-to-left writing as it is seen.
Letters differ in width and words in where they stand in a crop, so both are drawn anew each time; now and then a crop
cuts into a word's first or last letter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from dptr.cache.errors import UserError
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.text import reading_order
from dptr.cache.text.units import clusters
from dptr.trainer.data.stored_memory import StoredMemory, StoredTensor

if TYPE_CHECKING:
    from dptr.trainer.data.noise import NoiseSource

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

    Columns beside the word are zero but for the noise. What stands for no letter (the pooled vector, the template and
    the end) is left out.

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
