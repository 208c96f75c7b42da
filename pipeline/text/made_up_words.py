"""Made-up words, so that every subword token that the charset can spell is in some prompt.

A decoder cannot learn the spelling of a token that is in no word of the corpus. A made-up word is a rare token between
random tokens. The tokenizer may split it differently, so each word is tokenized, and only words with the intended token
are used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from dptr.cache.stores.prompt_rows import MADE_UP
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.text.corpus import LabelBatch
from dptr.pipeline.text.prompts import PromptEncoders

#: A token is given up after so many words without it: the tokenizer always merges it further.
_MOST_FAILURES = 50
_MOST_NEIGHBOURS = 2


@dataclass(frozen=True)
class MadeUpWords:
    """Words that complete a corpus.

    Attributes:
        labels: distinct, none of them in the corpus. pieces: number of tokens that the charset can spell.
        not_covered: tokens for which too few words were found.
    """

    labels: list[str]
    pieces: int
    not_covered: list[str]

    def without(self, catalogues: Sequence[Path]) -> LabelBatch:
        """Return the words that are not stored yet; counted once, so that drawing by count draws them, too."""
        with duckdb.connect() as connection:
            labels = _not_stored(connection, self.labels, catalogues)
        return LabelBatch(labels, np.ones(len(labels), np.int64), [MADE_UP] * len(labels))

    def summary(self, least: int) -> list[tuple[str, str]]:
        """Return counts for the command's table."""
        made_up = f"made-up words, so that each of {self.pieces:,} subword tokens is in {least} prompts"
        rows = [(f"{len(self.labels):,}", made_up)]
        if self.not_covered:
            examples = ", ".join(map(repr, self.not_covered[:3]))
            rows.append(
                (f"{len(self.not_covered):,}", f"tokens are in fewer: no word contains them (such as {examples})")
            )
        return rows


def make_up_words(
    catalogues: Sequence[Path],
    encoders: PromptEncoders,
    charset: Charset,
    normalization: Normalization,
    least: int,
    seed: int,
) -> MadeUpWords:
    """Make up words until each subword token occurs often enough.

    They depend only on the arguments and the tokenizer: stored made-up words do not count, so a killed run makes up
    the same ones again.

    Args:
        catalogues: those of the prompt store that holds the whole corpus (Parquet).
        charset, normalization: what a label must fit.
        least: minimum number of prompts with each token, including the corpus. seed: of the draws.
    """
    pieces = _spellable_pieces(encoders.first, charset, normalization)
    failures: Counter[int] = Counter()
    rng = np.random.default_rng(seed)
    texts = list(pieces.values())
    made: dict[str, None] = {}  # unlike a set, it keeps its order
    with duckdb.connect() as connection:
        met = _prompts_with_piece(connection, catalogues, [len(encoder.prefix_ids) for encoder in encoders.of_template])
        lacking = {piece: least - met[piece] for piece in pieces if met[piece] < least}
        while targets := [piece for piece, count in lacking.items() if count > 0 and failures[piece] < _MOST_FAILURES]:
            failures.update(targets)
            words = {piece: _word_with(pieces[piece], texts, rng) for piece in targets}
            new = set(_not_stored(connection, list(words.values()), catalogues, in_corpus=True))
            used = [encoders.of_template[encoders.which(word)] for word in words.values()]
            prompts = [encoder.template.prompt(word) for encoder, word in zip(used, words.values(), strict=True)]
            tokens = encoders.first.tokenize(prompts)
            for (piece, word), encoder, ids in zip(words.items(), used, tokens, strict=True):
                own = set(ids[len(encoder.prefix_ids) :])
                usable = normalization.apply(word) == word and normalization.reject(word, charset) is None
                if piece not in own or lacking[piece] <= 0 or not usable or word not in new or word in made:
                    continue
                made[word] = None
                failures[piece] = 0
                for other in own & lacking.keys():
                    lacking[other] -= 1
    return MadeUpWords(list(made), len(pieces), [pieces[piece] for piece, count in lacking.items() if count > 0])


def _not_stored(
    connection: duckdb.DuckDBPyConnection, labels: Sequence[str], catalogues: Sequence[Path], in_corpus: bool = False
) -> list[str]:
    """Return those of ``labels``, in order, that no catalogue has in whatever case.

    With ``in_corpus``, only what came from a corpus counts as stored, not what was made up before.
    """
    known = "select lower(label) from read_parquet($files)" + (" where source <> $made_up" if in_corpus else "")
    values: dict[str, object] = {"files": [str(path) for path in catalogues]}
    connection.register("asked", pa.table({"label": pa.array(labels, pa.string()), "place": range(len(labels))}))
    rows = connection.execute(
        f"select label from asked where lower(label) not in ({known}) order by place",
        values | ({"made_up": MADE_UP} if in_corpus else {}),
    ).fetchall()
    return [label for (label,) in rows]


def _spellable_pieces(encoder: TextEncoder, charset: Charset, normalization: Normalization) -> dict[int, str]:
    """Return the subword tokens that labels of this charset can contain, by token id, with their characters.

    Tokenizers that fold case lower it, so a charset of capitals spells lower-case tokens, and not vice versa. Tokens of
    partial characters in byte-level tokenizers are excluded: they occur with their characters.
    """
    pieces = encoder.pieces()
    if charset.one_case == "upper":
        pieces = {piece: charset.fold_case(text) for piece, text in pieces.items()}
    longest = normalization.max_label_length
    return {piece: text for piece, text in pieces.items() if 0 < len(text) <= longest and not charset.missing(text)}


def _prompts_with_piece(
    connection: duckdb.DuckDBPyConnection, catalogues: Sequence[Path], prefixes: Sequence[int]
) -> Counter[int]:
    """Return the number of the corpus's prompts with each token after the shared prefix."""
    first = [length + 1 for length in prefixes]
    own = f"unnest(list_distinct(token_ids[{first[0] if len(first) == 1 else f'{first}[template + 1]'}:]))"
    rows = connection.execute(
        f"select token, count(*) from (select {own} as token from read_parquet($files) "
        "where source <> $made_up and embeddings_of = id) group by token",
        {"files": [str(path) for path in catalogues], "made_up": MADE_UP},
    ).fetchall()
    return Counter(dict(rows))


def _word_with(text: str, neighbours: Sequence[str], rng: np.random.Generator) -> str:
    """Put up to two random tokens before and after ``text``."""
    before, behind = rng.integers(0, _MOST_NEIGHBOURS + 1, 2)
    drawn = [neighbours[index] for index in rng.integers(0, len(neighbours), before + behind)]
    return "".join([*drawn[:before], text, *drawn[before:]])
