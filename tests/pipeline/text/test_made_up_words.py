"""`embed-text --cover-subwords N`: every piece that the charset can spell stands in N prompts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dptr.cache.progress import set_quiet
from dptr.cache.stores.manifest import Shard
from dptr.cache.stores.prompt_rows import MADE_UP
from dptr.cache.text.charset import Charset
from dptr.pipeline.clip.loading import load_clip
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.executors.store_builder import StoreInMaking
from dptr.pipeline.text.corpus import CorpusSettings
from dptr.pipeline.text.embed_text import EmbedTextSettings, EmbedTextSummary, embed_text
from dptr.pipeline.text.templates import Template

WORDS = ["street", "the", "red", "Stone", "STONE", "doors"]
LEAST = 2
CHARSET = Charset("2adehinorst")
SETTINGS = EmbedTextSettings(corpus=CorpusSettings(charset=CHARSET), cover_subwords=LEAST, shard_rows=50)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    set_quiet(True)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder(load_clip("tiny"), Template())


def embed(folder: Path, settings: EmbedTextSettings = SETTINGS) -> EmbedTextSummary:
    folder.mkdir(exist_ok=True)
    (folder / "words.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return embed_text([str(folder / "words.txt")], folder / "prompts", settings)


@pytest.fixture(scope="module")
def covered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("covered")
    embed(folder)
    return folder / "prompts"


def rows_of(store: Path) -> list[dict[str, object]]:
    parts = sorted(store.glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part, columns=["label", "source", "token_ids"]).to_pylist()]


def made_up(store: Path) -> list[object]:
    return [row["label"] for row in rows_of(store) if row["source"] == MADE_UP]


def test_each_piece_that_the_charset_spells_stands_in_so_many_prompts(covered: Path, encoder: TextEncoder) -> None:
    spellable = {piece for piece, text in encoder.pieces().items() if text and not CHARSET.missing(text)}
    assert len(spellable) > 100
    met = Counter(piece for row in rows_of(covered) for piece in set(row["token_ids"][len(encoder.prefix_ids) :]))  # type: ignore[index, attr-defined]
    short = {piece for piece in spellable if met[piece] < LEAST}
    told = embed(covered.parent).table
    # CLIP takes every digit for a word: the piece of a digit inside a word is never met.
    assert {encoder.pieces()[piece] for piece in short} == {"2"}
    assert "1  tokens are in fewer: no word contains them (such as '2')" in told


def test_made_up_words_are_marked_and_are_labels_like_others(covered: Path) -> None:
    rows = rows_of(covered)
    words = made_up(covered)
    assert {row["label"] for row in rows if row["source"] != MADE_UP} == {word.lower() for word in WORDS}
    assert len(set(words)) == len(words) > 50
    assert not {str(word) for word in words} & {word.lower() for word in WORDS}
    assert all(0 < len(str(word)) <= 25 and not CHARSET.missing(str(word)) for word in words)


def test_without_the_option_nothing_is_made_up(tmp_path: Path) -> None:
    assert embed(tmp_path, dataclasses.replace(SETTINGS, cover_subwords=0)).rows == 5


def test_the_seed_fixes_the_words(covered: Path, tmp_path: Path) -> None:
    embed(tmp_path / "again")
    embed(tmp_path / "other", dataclasses.replace(SETTINGS, seed=1))
    assert made_up(tmp_path / "again" / "prompts") == made_up(covered)
    assert made_up(tmp_path / "other" / "prompts") != made_up(covered)


def test_a_killed_run_makes_up_the_same_words(covered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit, commits = StoreInMaking.commit, []

    def dies_soon(making: StoreInMaking, shard: Shard) -> None:
        commit(making, shard)
        commits.append(shard)
        if len(commits) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(StoreInMaking, "commit", dies_soon)
        embed(tmp_path)
    assert 0 < len(made_up(tmp_path / "prompts")) < len(made_up(covered))
    embed(tmp_path)
    assert made_up(tmp_path / "prompts") == made_up(covered)


def test_a_store_that_is_covered_is_left_as_it_is(tmp_path: Path) -> None:
    first = embed(tmp_path)
    again = embed(tmp_path)
    assert (again.rows, again.computed) == (first.rows, 0)
    more = embed(tmp_path, dataclasses.replace(SETTINGS, cover_subwords=LEAST + 1))
    assert more.computed > 0
