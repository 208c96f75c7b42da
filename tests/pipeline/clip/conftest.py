"""CLIP's real vocabulary, where its published merges are beside the project."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

_BPE = Path(__file__).parents[4] / "shared/data/clip/bpe_simple_vocab_16e6.txt.gz"


@pytest.fixture(scope="session")
def published_merges() -> list[tuple[str, str]]:
    """The 48,894 merges that CLIP's authors use, in their order."""
    if not _BPE.is_file():
        pytest.skip(f"{_BPE.name} is not beside the project")
    lines = gzip.decompress(_BPE.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    return [(first, second) for first, second in (line.split() for line in lines)]


@pytest.fixture(scope="session")
def real_tokenizer(published_merges: list[tuple[str, str]]) -> Any:
    """CLIP's tokenizer as transformers builds it from the published merges."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    pieces = ["".join(pair) for pair in published_merges]
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *pieces, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges: Any = published_merges
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
