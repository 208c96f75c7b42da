"""Labels in templates: one each, and which token stands for which of its letters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dptr.cache.errors import UserError
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.prompts import PromptStore
from dptr.pipeline.clip.loading import load_clip
from dptr.pipeline.text.templates import Template


@pytest.mark.parametrize("text", ["no label", "{label} {label}"])
def test_a_template_has_one_label(text: str) -> None:
    with pytest.raises(UserError, match="exactly once"):
        Template(text)


def test_the_catalogue_says_how_many_letters_of_the_label_each_token_stands_for(run: Any) -> None:
    run()
    table = pq.read_table([run.out / f"part-0000{number}.parquet" for number in range(4)])
    tokenizer = load_clip("tiny").tokenizer
    for row in table.to_pylist():
        pieces = [piece.removesuffix("</w>") for piece in tokenizer.convert_ids_to_tokens(row["token_ids"])]
        letters = row["token_letters"]
        assert sum(letters) == row["label_length"], pieces
        assert letters[-1] == 0, "the end"
        assert not any(letters[:8]), "the template"
        fused = [count for piece, count in zip(pieces, letters, strict=True) if piece.startswith("'") and piece != "'"]
        if row["label"] == "street":
            assert (pieces[8], fused) == ("'s", [1]), "a quote that fused with a letter counts the letter only"
    store = PromptStore(run.out)
    assert [int(own.sum()) for own in store.token_letters(np.array([3, 0]))] == [4, 6]
    assert len(store.token_letters(np.array([0]))[0]) == len(store.embeddings(np.array([0])).tokens)


def test_a_letter_spelt_by_several_tokens_counts_once() -> None:
    template = Template("a '{label}'")
    # é is one character that two byte tokens stand for.
    assert template.letters_of("aé", [(0, 0), (0, 1), (2, 4), (4, 5), (4, 5), (5, 6), (0, 0)]) == [0, 0, 1, 1, 0, 0, 0]
