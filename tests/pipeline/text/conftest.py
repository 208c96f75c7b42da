"""A small corpus and the store that it is embedded into."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dptr.cache.file_names import QUARANTINE_FILE
from dptr.cache.progress import set_quiet
from dptr.cache.rejections import Quarantine
from dptr.pipeline.clip.loading import load_clip
from dptr.pipeline.text import embed_text as module
from dptr.pipeline.text.corpus import CorpusSettings, read_corpus
from dptr.pipeline.text.embed_text import EmbedTextSettings, EmbedTextSummary, embed_text


class Run:
    """One corpus and one store; called, it embeds the one into the other."""

    words = ("street", "the", "red", "very", "made", "llama", "door", "Exit", "EXIT", "it's", "2024", "a", "!", "Stop")
    settings = EmbedTextSettings(shard_rows=4)

    def __init__(self, folder: Path) -> None:
        self.corpus, self.out = folder / "corpus.txt", folder / "prompts"
        self.write(list(self.words))

    def write(self, words: list[str]) -> None:
        self.corpus.write_text("\n".join(words) + "\n", encoding="utf-8")

    def __call__(self, settings: EmbedTextSettings = settings, out: Path | None = None) -> EmbedTextSummary:
        return embed_text([str(self.corpus)], out or self.out, settings)

    def of_corpus(self, **settings: Any) -> EmbedTextSettings:
        return dataclasses.replace(self.settings, corpus=CorpusSettings(**settings))

    def hashes(self, store: Path | None = None) -> dict[str, str]:
        files = (store or self.out).glob("*.*")
        found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        assert not [name for name in found if "writing" in name]
        return found

    def rejected(self) -> dict[str, str]:
        """Reasons by item."""
        return {row["item"]: row["reason"] for row in pq.read_table(self.out / QUARANTINE_FILE).to_pylist()}

    def rejected_from(self) -> dict[str, list[str]]:
        """Items by the name of their file."""
        found: dict[str, list[str]] = {}
        for row in pq.read_table(self.out / QUARANTINE_FILE).to_pylist():
            found.setdefault(Path(row["source"]).name, []).append(row["item"])
        return found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Loading is most of the time of a small run, so each CLIP is loaded once a test."""
    set_quiet(True)
    loaded: dict[Any, Any] = {}

    def load(*arguments: Any) -> Any:
        if arguments not in loaded:
            loaded[arguments] = load_clip(*arguments)
        return loaded[arguments]

    monkeypatch.setattr(module, "load_clip", load)
    return Run(tmp_path)


@dataclass
class Result:
    """What came out of a corpus, with file names in place of paths."""

    labels: list[str]
    counts: list[int]
    sources: list[str]
    rejected: list[tuple[str, int | None, str, str]]
    read: int
    distinct: int
    charset: str
    summary: str
    batch_sizes: list[int]


Read = Callable[..., Result]


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """Return what reads a corpus and asserts that no temporary file stays."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def run(*paths: Path | str, known: list[Path] | None = None, rows: int = 1000, **chosen: Any) -> Result:
        names = [str(path) for path in paths]
        quarantine_path = tmp_path / "quarantine.parquet"
        with Quarantine(quarantine_path) as quarantine:
            with read_corpus(names, CorpusSettings(**chosen), quarantine) as corpus:
                remaining = corpus.without(known or [])
                batches = list(corpus.batches(rows))
                summary = corpus.summary(quarantine)
            assert sum(len(batch.labels) for batch in batches) == remaining
        assert list(tmp_path.glob("temporary/*")) == []
        table = pq.read_table(quarantine_path).to_pylist()
        return Result(
            [label for batch in batches for label in batch.labels],
            [count for batch in batches for count in batch.counts.tolist()],
            [Path(source).name for batch in batches for source in batch.sources],
            [(Path(row["source"]).name, row["line"], row["item"], row["reason"]) for row in table],
            corpus.read,
            corpus.distinct,
            "".join(corpus.charset.characters),
            summary,
            [len(batch.labels) for batch in batches],
        )

    return run
