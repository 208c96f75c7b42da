"""The prompt store: labels, prompts and their text embeddings, for SQL and training."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dptr.cache.errors import DamagedStore
from dptr.cache.file_names import PREFIX_FILE
from dptr.cache.stores.prompt_rows import PromptRows, open_rows
from dptr.cache.stores.shards import Embeddings, EmbeddingsFile, EmbeddingsStore, StoredEmbeddings
from dptr.cache.text.charset import Charset

#: Catalogue columns before ``pooled``, ``shard`` and ``row`` are added.
CATALOGUE_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("label", pa.string()),
        ("prompt", pa.string()),
        ("label_length", pa.int16()),
        ("n_tokens", pa.int16()),
        ("token_ids", pa.list_(pa.int32())),
        ("token_letters", pa.list_(pa.int16())),  # number of label characters that each token covers
        ("embeddings_of", pa.int64()),  # the first row with the same embeddings; case variants of one label share them
        ("count", pa.int64()),
        ("source", pa.string()),
    ]
)
#: The number of a row's template, in stores of several.
TEMPLATE_COLUMN = pa.field("template", pa.int16())


class PromptStore(EmbeddingsStore):
    """A committed prompt store, opened read-only.

    A row's embeddings are those after the shared prefix, up to and including the end token (``--context content``).
    Opening reads the manifest only; label texts load on first use and embeddings are memory-mapped.
    """

    KIND = "prompts"
    MADE_BY = "dptr embed-text"
    VIEW = "prompts"

    @cached_property
    def charset(self) -> Charset:
        """The charset of all labels."""
        return Charset.from_text(self._required("charset", str))

    @property
    def prefix(self) -> NDArray[np.float32]:
        """Embeddings that all prompts of the first template share, shape (prefix tokens, dim)."""
        return self.prefixes[0]

    @cached_property
    def prefixes(self) -> list[NDArray[np.float32]]:
        """Embeddings that all prompts of a template share, for each template, of shape (prefix tokens, dim)."""
        file = EmbeddingsFile(self.manifest.checked(self.folder, PREFIX_FILE))
        return [tokens.astype(np.float32) for tokens in np.split(file.tokens, file.offsets[1:-1])]

    def require_finite(self, rows: NDArray[np.int64]) -> None:
        """See :meth:`EmbeddingsStore.require_finite`; the shared prefix is checked, too."""
        if not all(np.isfinite(prefix).all() for prefix in self.prefixes):
            raise DamagedStore(
                f"{self.folder / PREFIX_FILE} holds NaN or infinity", f"Run `{self.MADE_BY}` again into another folder"
            )
        super().require_finite(rows)

    def templates_of(self, rows: NDArray[np.int64]) -> NDArray[np.int16]:
        """Return the template index of each of ``rows``, of the same shape."""
        rows = self._rows(rows)
        if len(self.prefixes) == 1:
            return np.zeros(rows.shape, np.int16)
        templates: NDArray[np.int16] = self.rows.numbers_of(TEMPLATE_COLUMN.name, rows)
        return templates

    def prefix_lengths_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the length of the shared prefix of each of ``rows``, in tokens, of the same shape."""
        lengths: NDArray[np.int64] = np.array([len(prefix) for prefix in self.prefixes])[self.templates_of(rows)]
        return lengths

    def __getstate__(self) -> dict[str, Any]:
        # The rows were located and checked above.
        return super().__getstate__() | ({"rows": self.rows} if "rows" in self.__dict__ else {})

    @cached_property
    def rows(self) -> PromptRows:
        """Labels, lengths, counts and hashes of all rows, mapped."""
        return open_rows(self.folder, self.manifest)

    @cached_property
    def labels(self) -> pa.StringArray:
        """All labels in row order (one contiguous Arrow array; index it, do not turn it into a list)."""
        return pa.concat_arrays([labels.cast(pa.large_string()) for labels in self.rows.labels()])

    @cached_property
    def label_lengths(self) -> NDArray[np.int16]:
        """Units of each label, shape (rows,)."""
        return np.concatenate([*self.rows.column("label_length")])

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Corpus count of each label, shape (rows,)."""
        return np.concatenate([*self.rows.column("count")])

    @cached_property
    def longest_label(self) -> int:
        """Units of the longest label."""
        return max(int(lengths.max()) for lengths in self.rows.column("label_length"))

    def label_lengths_of(self, rows: NDArray[np.int64]) -> NDArray[np.int16]:
        """Return the number of units of the labels of ``rows``, of the same shape."""
        lengths: NDArray[np.int16] = self.rows.numbers_of("label_length", self._rows(rows))
        return lengths

    def counts_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the corpus counts of the labels of ``rows``, of the same shape."""
        counts: NDArray[np.int64] = self.rows.numbers_of("count", self._rows(rows))
        return counts

    def token_letters(self, rows: NDArray[np.int64]) -> list[NDArray[np.int16]]:
        """Return the number of label characters that each own token (after the prefix) of ``rows`` covers.

        0 for tokens of the template and the end.
        """
        rows = self._batch(rows)
        shared = self.prefix_lengths_of(rows).tolist()
        return [letters[n:] for n, letters in zip(shared, self.rows.token_letters_of(rows), strict=True)]

    def labels_of(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the labels of ``rows``, shape (batch,), in order."""
        return self.rows.labels_of(self._batch(rows))

    def embeddings(self, rows: NDArray[np.int64]) -> Embeddings:
        """Return the own embeddings (after the prefix) and pooled vectors of ``rows``, shape (batch,)."""
        return self._reader.gather(self._batch(rows))

    def stored_embeddings(self, rows: NDArray[np.int64]) -> StoredEmbeddings:
        """Return embeddings as :meth:`embeddings` does for ``rows``, shape (batch,), in the stored precision."""
        return self._reader.gather_stored(self._batch(rows))

    def pooled(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the pooled vectors of ``rows``, shape (rows, pooled_dim)."""
        return self.pooled_of(rows)
