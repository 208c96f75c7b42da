"""What tests of training share: one thread, since tensors are tiny; stores of given embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from dptr.cache.choices import EmbeddingsDtype
from dptr.cache.file_names import PREFIX_FILE
from dptr.cache.stores.manifest import FileRecord, Manifest
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import Embeddings, write_embeddings, write_shard


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def save_bank() -> Callable[..., OrpBank]:
    """A folder, embeddings (crops, tokens, dim), perhaps pooled vectors (crops, dim) and dtype -> an ORP bank."""

    def save(
        folder: Path,
        tokens: NDArray[np.float32],
        pooled: NDArray[np.float32] | None = None,
        dtype: EmbeddingsDtype = "float32",
    ) -> OrpBank:
        folder.mkdir(exist_ok=True)
        crops, each, dim = tokens.shape
        vectors = np.zeros((crops, dim), np.float32) if pooled is None else pooled
        embeddings = Embeddings(tokens.reshape(-1, dim).astype(np.float32), np.full(crops, each), vectors)
        manifest = Manifest("orp", {"encoder": "t", "weights": "w", "tokens_per_crop": each})
        catalogue = pa.table({"id": np.arange(crops), "source": ["x"] * crops})
        manifest.shards.append(write_shard(folder, 0, catalogue, embeddings, dtype, {}))
        manifest.save(folder)
        return OrpBank(folder)

    return save


@pytest.fixture(scope="session")
def save_prompts() -> Callable[..., PromptStore]:
    """Folder, catalogue, its rows' embeddings, characters -> a prompt store of one shard and a prefix of two tokens."""

    def save(
        folder: Path,
        catalogue: pa.Table,
        embeddings: Embeddings,
        characters: str,
        dtype: EmbeddingsDtype = "float32",
        prefix: float = -1,
    ) -> PromptStore:
        folder.mkdir(exist_ok=True)
        manifest = Manifest("prompts", {"encoder": "t", "weights": "w", "charset": characters})
        manifest.shards.append(write_shard(folder, 0, catalogue, embeddings, dtype, {}))
        first = np.full((2, embeddings.pooled.shape[1]), prefix, np.float32)
        write_embeddings(folder / PREFIX_FILE, Embeddings(first, np.array([2]), first[:1]), "float32")
        manifest.files[PREFIX_FILE] = FileRecord.of(folder / PREFIX_FILE)
        manifest.save(folder)
        return PromptStore(folder)

    return save
