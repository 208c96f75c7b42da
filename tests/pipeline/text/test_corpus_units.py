"""Corpora of grapheme clusters and of right-to-left scripts: charsets learnt, labels measured, stores gone on with."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.rejections import Quarantine
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.verify import verify
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.repair import repair
from dptr.pipeline.text.corpus import CorpusSettings, read_corpus
from dptr.pipeline.text.embed_text import EmbedTextSettings, embed_text

HINDI = "क्षत्रिय\nनमस्ते\nकी\nकाम\nनमस्ते\nx9"


def read(tmp_path: Path, text: str, settings: CorpusSettings) -> tuple[list[str], Charset, dict[str, int]]:
    (tmp_path / "corpus.txt").write_text(text, encoding="utf-8")
    with (
        Quarantine(tmp_path / "quarantine.parquet") as quarantine,
        read_corpus([str(tmp_path / "corpus.txt")], settings, quarantine) as corpus,
    ):
        labels = [label for batch in corpus.batches(10) for label in batch.labels]
        return labels, corpus.charset, dict(quarantine.counts)


def test_clusters_are_learnt_from_the_corpus(tmp_path: Path) -> None:
    labels, charset, _ = read(tmp_path, HINDI, CorpusSettings(charset="auto", units="grapheme"))
    assert labels == ["क्षत्रिय", "नमस्ते", "की", "काम", "x9"]
    assert set(charset.characters) == {"क्ष", "त्रि", "य", "न", "म", "स्ते", "की", "का", "x", "9"}
    assert charset.units == "grapheme"


def test_auto_alone_learns_code_points_as_before(tmp_path: Path) -> None:
    labels, charset, _ = read(tmp_path, HINDI, CorpusSettings(charset="auto"))
    assert charset.characters == "".join(sorted(set(HINDI) - {"\n"}))
    assert len(labels) == 5


def test_a_script_that_writes_marks_on_letters_has_clusters_unless_told_otherwise(tmp_path: Path) -> None:
    _, hindi, _ = read(tmp_path, HINDI, CorpusSettings(charset="hi"))
    assert hindi.units == "grapheme"
    assert {"क्ष", "त्रि", "की", "ख", "A"} <= set(hindi.characters)
    assert not any("\u093e" <= unit <= "\u094d" for unit in hindi.characters), "no mark by itself"
    assert read(tmp_path, HINDI, CorpusSettings(charset="hi", units="codepoint"))[1] == Charset.named("hi")
    assert read(tmp_path, "дом", CorpusSettings(charset="ru"))[1] == Charset.named("ru")


def test_labels_beyond_the_script_or_the_length_are_rejected_with_a_reason(tmp_path: Path) -> None:
    settings = CorpusSettings(charset="hi", normalization=Normalization(max_label_length=3))
    labels, _, rejected = read(tmp_path, "क्षत्रिय дом नमस्कार", settings)
    assert labels == ["क्षत्रिय"]
    assert rejected == {"not in the charset": 1, "longer than 3 characters": 1}


def test_rare_clusters_can_be_left_out(tmp_path: Path) -> None:
    labels, charset, _ = read(tmp_path, "की की का", CorpusSettings(charset="auto", units="grapheme", min_count=2))
    assert (labels, charset.characters) == (["की"], ("की",))


def test_a_long_label_of_clusters_is_not_cut_to_one_that_fits(tmp_path: Path) -> None:
    cluster = "क" + "\u0951" * 30
    settings = CorpusSettings(charset="auto", units="grapheme", normalization=Normalization(max_label_length=25))
    labels, _, _ = read(tmp_path, f"{cluster * 30} की", settings)
    assert labels == ["की"]


def test_a_file_of_clusters_is_not_taken_apart(tmp_path: Path) -> None:
    (tmp_path / "units.txt").write_text("# units: grapheme\nकी\n", encoding="utf-8")
    name = str(tmp_path / "units.txt")
    assert read(tmp_path, "की का", CorpusSettings(charset=name))[0] == ["की"]
    with pytest.raises(UserError, match="clusters"):
        read(tmp_path, "की", CorpusSettings(charset=name, units="codepoint"))


def embed(tmp_path: Path, text: str, corpus: CorpusSettings) -> PromptStore:
    (tmp_path / "words.txt").write_text(text, encoding="utf-8")
    embed_text([str(tmp_path / "words.txt")], tmp_path / "prompts", EmbedTextSettings(corpus=corpus, shard_rows=2))
    return PromptStore(tmp_path / "prompts")


def test_a_store_of_clusters_counts_them_grows_with_its_corpus_and_is_repaired(tmp_path: Path) -> None:
    settings = CorpusSettings(charset="auto", units="grapheme")
    store = embed(tmp_path, HINDI, settings)
    assert store.label_lengths.tolist() == [3, 3, 1, 2, 2]
    assert store.longest_label == 3
    assert embed(tmp_path, HINDI, settings).manifest.rows == 5
    grown = embed(tmp_path, HINDI + "\nकौन", settings)
    assert grown.charset == store.charset.with_more(["कौ"])
    catalogue = grown.manifest.catalogues(grown.folder)[0]
    before = pq.read_table(catalogue)
    embeddings = catalogue.with_suffix(".arrow")
    embeddings.unlink()
    assert repair(grown.folder, {embeddings.name}) == []
    catalogue.unlink()
    assert repair(grown.folder, {catalogue.name}) == []
    assert verify(grown.folder) == []
    assert pq.read_table(catalogue).equals(before)


def test_a_store_of_other_units_is_rejected(tmp_path: Path) -> None:
    embed(tmp_path, HINDI, CorpusSettings(charset="auto", units="grapheme"))
    with pytest.raises(DamagedStore, match="charset"):
        embed(tmp_path, HINDI + "\nकौन", CorpusSettings(charset="auto"))
