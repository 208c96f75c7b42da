from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from dptr.cache.errors import DamagedStore, TooManyRefused, UserError
from dptr.cache.file_names import QUARANTINE_FILE
from dptr.cache.normalization import Normalization
from dptr.cache.progress import set_quiet
from dptr.cache.stores import sealed
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.verify import verify
from dptr.pipeline.clip.loading import load_clip
from dptr.pipeline.clip.text_tower import TextTower
from dptr.pipeline.text import embed_text as module
from dptr.pipeline.text.corpus import CorpusSettings
from dptr.pipeline.text.embed_text import EmbedTextSettings, EmbedTextSummary, embed_text, estimate
from dptr.pipeline.text.templates import Template

WORDS = ["street", "the", "red", "very", "made", "llama", "door", "Exit", "EXIT", "it's", "2024", "a", "!", "Stop"]
SETTINGS = EmbedTextSettings(shard_rows=4)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    set_quiet(True)


@pytest.fixture(autouse=True)
def _load_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading is most of the time of a small run."""
    loaded: dict[Any, Any] = {}

    def load(*arguments: Any) -> Any:
        if arguments not in loaded:
            loaded[arguments] = load_clip(*arguments)
        return loaded[arguments]

    monkeypatch.setattr(module, "load_clip", load)


class Run:
    """One corpus and one store."""

    def __init__(self, folder: Path) -> None:
        self.corpus, self.out = folder / "corpus.txt", folder / "prompts"
        self.write(WORDS)

    def write(self, words: list[str]) -> None:
        self.corpus.write_text("\n".join(words) + "\n", encoding="utf-8")

    def __call__(self, settings: EmbedTextSettings = SETTINGS, out: Path | None = None) -> EmbedTextSummary:
        return embed_text([str(self.corpus)], out or self.out, settings)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def of_corpus(**settings: Any) -> EmbedTextSettings:
    return dataclasses.replace(SETTINGS, corpus=CorpusSettings(**settings))


def hashes(store: Path) -> dict[str, str]:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in store.glob("*.*")}
    assert not [name for name in found if "writing" in name]
    return found


def refused(store: Path) -> dict[str, str]:
    return {row["item"]: row["reason"] for row in pq.read_table(store / "quarantine.parquet").to_pylist()}


def test_a_store_is_as_the_contract_says(run: Run) -> None:
    summary = run()
    assert (summary.rows, summary.computed, summary.quarantined) == (len(WORDS), len(WORDS), 0)
    assert sorted(path.name for path in run.out.iterdir()) == sorted(
        ["manifest.json", "prefix.arrow", "quarantine.parquet"]
        + [f"part-0000{number}.{suffix}" for number in range(4) for suffix in ("arrow", "parquet")]
    )
    assert verify(run.out) == []
    with pa.memory_map(str(run.out / "part-00000.arrow")) as source:
        batch = ipc.open_file(source).read_all()
    assert batch.schema.field("states").type == pa.list_(pa.list_(pa.float16(), 128))
    query = f"select * from '{run.out}/part-*.parquet' order by id"
    table = duckdb.connect().sql(query)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()]
    assert [row["label"] for row in rows] == WORDS
    assert [row["id"] for row in rows] == [row["states_of"] for row in rows] == list(range(len(WORDS)))
    assert [(row["shard"], row["row"]) for row in rows[3:6]] == [
        ("part-00000", 3),
        ("part-00001", 0),
        ("part-00001", 1),
    ]
    tokenizer = load_clip("tiny").tokenizer
    for row in rows:
        assert row["prompt"] == f"a photo of a '{row['label']}'"
        assert row["token_ids"] == tokenizer(row["prompt"])["input_ids"]
        assert (row["n_tokens"], row["label_length"]) == (len(row["token_ids"]), len(row["label"]))
        assert (row["count"], row["source"]) == (1, str(run.corpus))
    nearest = f"select label from ({query}) order by array_cosine_similarity(pooled::FLOAT[128], ?::FLOAT[128]) desc"
    assert duckdb.connect().execute(nearest, [rows[2]["pooled"]]).fetchall()[0] == ("red",)


@pytest.mark.parametrize(("dtype", "apart"), [("float32", 0.0), ("float16", 2e-3), ("int8", 2e-2)])
def test_the_store_gives_back_the_towers_states(run: Run, dtype: Any, apart: float) -> None:
    run(dataclasses.replace(SETTINGS, dtype=dtype))
    store = PromptStore(run.out)
    tower = TextTower(load_clip("tiny"), Template())
    expected = tower.encode(tower.tokenize([Template().prompt(word) for word in WORDS]))
    read = store.states(np.arange(len(WORDS)))
    assert np.array_equal(read.lengths, expected.lengths)
    assert np.abs(read.tokens - expected.tokens).max() <= apart + 1e-5
    assert np.abs(read.pooled - expected.pooled).max() <= 2e-3
    assert np.abs(store.prefix - tower.prefix).max() <= 1e-6


def test_a_finished_run_ends_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run()
    before = hashes(run.out)
    monkeypatch.setattr(module, "load_clip", None)
    monkeypatch.setattr(module, "read_corpus", None)
    again = run()
    assert (again.rows, again.computed, again.table) == (first.rows, 0, first.table)
    assert hashes(run.out) == before


def test_a_grown_corpus_computes_only_what_is_new(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    before = hashes(run.out)
    run.write([*WORDS, "new", "street", "newer"])
    encoded: list[int] = []
    original = TextTower.encode
    monkeypatch.setattr(
        TextTower, "encode", lambda self, ids, *rest: encoded.append(len(ids)) or original(self, ids, *rest)
    )
    summary = run()
    assert (summary.rows, summary.computed) == (len(WORDS) + 2, 2)
    assert encoded == [2, 2]  # the check, and the shard
    after = hashes(run.out)
    assert {name: after[name] for name in before if name.startswith("part")} == {
        name: value for name, value in before.items() if name.startswith("part")
    }
    assert PromptStore(run.out).labels.to_pylist() == [*WORDS, "new", "newer"]


class Killed(BaseException):
    pass


def test_killed_at_any_file_operation_it_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write([*WORDS, "日本", "\0"])
    settings = dataclasses.replace(SETTINGS, shard_rows=9)
    run(settings)
    expected = hashes(run.out)
    replace = os.replace
    for first_killed in range(100):
        out = tmp_path / f"killed-{first_killed}"
        moves = 0

        def die(source: Any, target: Any, kill_at: int = first_killed) -> None:
            nonlocal moves
            moves += 1
            if moves > kill_at and moves % 2:
                raise Killed  # before the file is there
            replace(source, target)
            if moves > kill_at:
                raise Killed  # when it is there, and nothing after it

        monkeypatch.setattr(os, "replace", die)
        try:
            run(settings, out)
            finished = True
        except Killed:
            finished = False
        monkeypatch.setattr(os, "replace", replace)
        run(settings, out)
        assert hashes(out) == expected
        if finished:
            assert first_killed == 10  # four shard files, the prefix, the quarantine, four times the manifest
            return
    pytest.fail("never finished")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"template": "the word {label}"}, "template: a photo of a '{label}' there, the word {label} now"),
        ({"dtype": "int8"}, "dtype: float16 there, int8 now"),
        ({"context": "full"}, "context: content there, full now"),
        ({"states": "projected"}, "states: hidden there, projected now"),
        ({"precision": "bf16"}, "precision: fp32 there, bf16 now"),
        ({"corpus": CorpusSettings(case="lower")}, "case: keep there, lower now"),
        ({"corpus": CorpusSettings(charset="36", case="keep")}, "charset: "),
        ({"corpus": CorpusSettings(normalization=Normalization(max_label_length=9))}, "normalization: "),
    ],
)
def test_other_settings_need_another_folder(run: Run, changed: dict[str, Any], named: str) -> None:
    run()
    before = hashes(run.out)
    with pytest.raises(DamagedStore) as raised:
        run(dataclasses.replace(SETTINGS, **changed))
    assert named in str(raised.value)
    # What was refused on the way is known, and no longer under the manifest's hashes; all else is as it was.
    told = (QUARANTINE_FILE, "manifest.json")
    after = hashes(run.out)
    assert {name: after[name] for name in after if name not in told} == {
        name: before[name] for name in before if name not in told
    }
    assert verify(run.out) == []


def test_more_refusals_than_allowed_fail_every_time(run: Run) -> None:
    run.write([*WORDS, "日本", "x" * 26])
    allowed = dataclasses.replace(SETTINGS, max_bad=2)
    assert run(allowed).quarantined == 2
    for _ in range(2):
        with pytest.raises(TooManyRefused, match="2 inputs were refused, 1 are allowed"):
            run(dataclasses.replace(SETTINGS, max_bad=1))
    assert len(PromptStore(run.out)) == len(WORDS)
    assert set(refused(run.out)) == {"日本", "x" * 26}


def test_prompts_that_do_not_fit_the_tower_are_refused(run: Run) -> None:
    long, special = " ".join("😀" * 40), "<|endoftext|>"
    run.write([*WORDS, long, special])
    settings = of_corpus(
        unit="line", charset="auto", normalization=Normalization(keep_spaces=True, max_label_length=99)
    )
    summary = run(settings)
    assert summary.rows == len(WORDS)
    assert refused(run.out) == {
        long: "prompt longer than 77 tokens",
        special: "label spells a special token of the tokenizer",
    }
    assert "prompt longer than 77 tokens" in summary.table


@pytest.mark.parametrize(
    ("case", "labels", "of"),
    [
        ("keep", ["Exit", "EXIT", "7"], [0, 1, 2]),
        ("lower", ["exit", "7"], [0, 1]),
        ("upper-lower-title", ["EXIT", "exit", "Exit", "7"], [0, 0, 0, 3]),
    ],
)
def test_cases(run: Run, case: Any, labels: list[str], of: list[int]) -> None:
    run.write(["Exit", "EXIT", "7"])
    run(of_corpus(case=case))
    store = PromptStore(run.out)
    assert store.labels.to_pylist() == labels
    table = pq.read_table(run.out / "part-00000.parquet")
    assert table["states_of"].to_pylist() == of
    states = store.states(np.arange(len(labels)))
    parts = np.split(states.tokens, np.cumsum(states.lengths)[:-1])
    for row, first in enumerate(of):
        assert np.array_equal(parts[row], parts[first])
        assert np.array_equal(states.pooled[row], states.pooled[first])
        assert table["token_ids"][row] == table["token_ids"][first]
    assert run(of_corpus(case=case)).computed == 0


def test_a_learnt_charset_grows_with_the_corpus(run: Run) -> None:
    run(of_corpus(charset="auto"))
    known = PromptStore(run.out).charset.characters
    run.write([*WORDS, "Žluť"])
    assert run(of_corpus(charset="auto")).computed == 1
    assert set(PromptStore(run.out).charset.characters) == {*known, *"Žluť"}


def test_estimate_starts_nothing(run: Run) -> None:
    cost = estimate([str(run.corpus)], run.out, SETTINGS)
    assert cost.rows == len(WORDS)
    assert cost.seconds > 0
    assert not run.out.exists()
    run()
    written = sum(path.stat().st_size for path in run.out.glob("part-*.arrow"))
    assert 0.3 < cost.bytes / written < 3
    assert estimate([str(run.corpus)], run.out, SETTINGS).rows == 0


def test_a_replaced_model_is_noticed(run: Run, tmp_path: Path) -> None:
    from dptr.pipeline.clip import bundled as bundled_clip

    folder = tmp_path / "clip"
    shutil.copytree(bundled_clip.BUNDLED, folder)
    settings = dataclasses.replace(SETTINGS, clip=str(folder))
    run(settings)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    assert module._finished(run.out, module._what_is_asked([str(run.corpus)], settings), None, 0.0) is None


def test_a_store_that_lost_a_file_is_told(run: Run) -> None:
    run()
    (run.out / "part-00001.arrow").unlink()
    with pytest.raises(DamagedStore, match=r"part-00001\.arrow is missing"):
        run()


def test_a_folder_that_cannot_be_written_is_told(run: Run) -> None:
    run.out.write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        run()


def test_a_folder_of_the_users_called_scratch_is_left_alone(run: Run) -> None:
    mine = run.out / ".scratch" / "corpus" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    run()
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("wrong", [{"shard_rows": -1}, {"shard_rows": 0}, {"tokens_per_batch": 0}, {"max_bad": -1}])
def test_numbers_out_of_range_are_told_at_once(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(wrong)).replace('_', '-')} is -?[01]"):
        EmbedTextSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--min-count is 0"):
        CorpusSettings(min_count=0)


def scaled_states(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """The bundled CLIP with one word's last state so many times as large."""
    original = TextTower.encode

    def encode(self: TextTower, ids: list[list[int]], *rest: Any) -> Any:
        states = original(self, ids, *rest)
        if len(ids) == SETTINGS.shard_rows:
            states.tokens[states.lengths[:2].sum() - 1] *= factor
        return states

    monkeypatch.setattr(TextTower, "encode", encode)
    monkeypatch.setattr(module, "_check", lambda *_: None)


def test_states_that_half_precision_cannot_hold_are_told_with_their_prompt(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled_states(monkeypatch, 1e6)
    with pytest.raises(UserError, match=r"prompt \"a photo of a 'the'\" is .* float16 cannot hold.*--dtype float32"):
        run()
    run(dataclasses.replace(SETTINGS, dtype="float32"), run.out.with_name("wide"))
    assert np.isfinite(PromptStore(run.out.with_name("wide")).states(np.arange(4)).tokens).all()


def test_a_corpus_of_which_nothing_can_be_embedded_is_an_error(run: Run) -> None:
    run.write([" ".join("😀" * 40)])
    lines = Normalization(keep_spaces=True, max_label_length=99)
    with pytest.raises(UserError, match=r"no usable label .*prompt longer than 77 tokens \(1\)"):
        run(of_corpus(unit="line", charset="auto", normalization=lines))


def test_the_same_clip_by_another_path_goes_on_with_its_store(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dptr.pipeline.clip import bundled as bundled_clip

    shutil.copytree(bundled_clip.BUNDLED, tmp_path / "clip")
    run(dataclasses.replace(SETTINGS, clip=str(tmp_path / "clip")))
    run.write([*WORDS, "new"])
    monkeypatch.chdir(tmp_path)
    assert run(dataclasses.replace(SETTINGS, clip="./clip")).computed == 1
    run.write([*WORDS, "new", "newer"])
    assert run().computed == 1  # the bundled one has the same weights


def test_full_prompts_padded_otherwise_are_not_mixed_with_those_padded_with_zeros(run: Run) -> None:
    full = dataclasses.replace(SETTINGS, context="full")
    run(full)
    manifest = Manifest.load(run.out, "prompts")
    assert manifest.identity.pop("padding") == 0
    manifest.details.clear()
    manifest.save(run.out)
    with pytest.raises(DamagedStore, match="padding: None there, 0 now"):
        run(full)


def refused_from(store: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in pq.read_table(store / QUARANTINE_FILE).to_pylist():
        found.setdefault(Path(row["source"]).name, []).append(row["item"])
    return found


def test_a_second_corpus_keeps_what_the_first_one_refused(run: Run, tmp_path: Path) -> None:
    run.write(["stop", "ä" * 3])
    run()
    second = tmp_path / "second.txt"
    second.write_text("door\nöö\n", encoding="utf-8")
    embed_text([str(second)], run.out, SETTINGS)
    assert refused_from(run.out) == {"corpus.txt": ["äää"], "second.txt": ["öö"]}
    # Read again, a source is judged anew.
    run.write(["stop", "üü"])
    run()
    assert refused_from(run.out) == {"corpus.txt": ["üü"], "second.txt": ["öö"]}


def test_a_flipped_bit_in_the_quarantine_is_found_and_mended_by_the_same_command(run: Run) -> None:
    run.write(["stop", "äää"])
    run()
    path = run.out / QUARANTINE_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    assert [found.file for found in verify(run.out)] == [QUARANTINE_FILE]
    assert len(PromptStore(run.out)) == 1
    run()
    assert verify(run.out) == []
    assert refused_from(run.out) == {"corpus.txt": ["äää"]}


def test_a_quarantine_that_is_damaged_but_still_readable_tells_of_nothing(run: Run) -> None:
    run.write(["stop", "äää"])
    run()
    path = run.out / QUARANTINE_FILE
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "source", pa.array(["somewhere.txt"])), path)
    run()
    assert verify(run.out) == []
    assert refused_from(run.out) == {"corpus.txt": ["äää"]}


def test_the_catalogue_says_how_many_letters_of_the_label_each_token_stands_for(run: Run) -> None:
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
    assert len(store.token_letters(np.array([0]))[0]) == len(store.states(np.array([0])).tokens)


def test_a_store_without_letters_is_refused_with_what_to_do(run: Run) -> None:
    run()
    path = run.out / "part-00002.parquet"
    pq.write_table(pq.read_table(path).drop(["token_letters"]), path)
    manifest = sealed.read_json(run.out / "manifest.json")
    manifest["shards"][2]["files"][path.name]["bytes"] = path.stat().st_size
    sealed.write_json(run.out / "manifest.json", manifest)
    with pytest.raises(UserError, match="how many letters") as error:
        PromptStore(run.out).token_letters(np.array([0]))
    assert "embed-text" in str(error.value)


def test_a_letter_spelt_by_several_tokens_counts_once() -> None:
    template = Template("a '{label}'")
    # é is one character that two byte tokens stand for.
    assert template.letters_of("aé", [(0, 0), (0, 1), (2, 4), (4, 5), (4, 5), (5, 6), (0, 0)]) == [0, 0, 1, 1, 0, 0, 0]
