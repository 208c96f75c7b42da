"""A corpus becomes a store as the contract says, once, whatever cuts it off."""

from __future__ import annotations

import dataclasses
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

from dptr.cache.errors import DamagedStore, TooManyRejected, UserError
from dptr.cache.file_names import QUARANTINE_FILE
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.verify import verify
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.clip.loading import load_clip
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.text import embed_text as module
from dptr.pipeline.text.corpus import CorpusSettings
from dptr.pipeline.text.embed_text import EmbedTextSettings, embed_text, estimate
from dptr.pipeline.text.templates import Template


def test_a_store_is_as_the_contract_says(run: Any) -> None:
    summary = run()
    assert (summary.rows, summary.computed, summary.quarantined) == (len(run.words), len(run.words), 0)
    assert sorted(path.name for path in run.out.iterdir()) == sorted(
        ["manifest.json", "prefix.arrow", "quarantine.parquet", "rows.arrow"]
        + [f"part-0000{number}.{suffix}" for number in range(4) for suffix in ("arrow", "parquet")]
    )
    assert verify(run.out) == []
    with pa.memory_map(str(run.out / "part-00000.arrow")) as source:
        batch = ipc.open_file(source).read_all()
    assert batch.schema.field("embeddings").type == pa.list_(pa.list_(pa.float16(), 128))
    query = f"select * from '{run.out}/part-*.parquet' order by id"
    table = duckdb.connect().sql(query)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.fetchall()]
    assert [row["label"] for row in rows] == list(run.words)
    assert [row["id"] for row in rows] == [row["embeddings_of"] for row in rows] == list(range(len(run.words)))
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
def test_the_store_gives_back_the_encoders_embeddings(run: Any, dtype: Any, apart: float) -> None:
    run(dataclasses.replace(run.settings, dtype=dtype))
    store = PromptStore(run.out)
    encoder = TextEncoder(load_clip("tiny"), Template())
    expected = encoder.encode(encoder.tokenize([Template().prompt(word) for word in run.words]))
    read = store.embeddings(np.arange(len(run.words)))
    assert np.array_equal(read.lengths, expected.lengths)
    assert np.abs(read.tokens - expected.tokens).max() <= apart + 1e-5
    assert np.abs(read.pooled - expected.pooled).max() <= 2e-3
    assert np.abs(store.prefix - encoder.prefix).max() <= 1e-6


def test_a_finished_run_computes_nothing(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run()
    before = run.hashes()
    monkeypatch.setattr(TextEncoder, "encode", None)
    again = run()
    assert (again.rows, again.computed, again.table) == (first.rows, 0, first.table)
    assert run.hashes() == before


def test_a_grown_corpus_computes_only_what_is_new(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    before = run.hashes()
    run.write([*run.words, "new", "street", "newer"])
    encoded: list[int] = []
    original = TextEncoder.encode
    monkeypatch.setattr(
        TextEncoder, "encode", lambda self, ids, *rest: encoded.append(len(ids)) or original(self, ids, *rest)
    )
    summary = run()
    assert (summary.rows, summary.computed) == (len(run.words) + 2, 2)
    assert encoded == [2, 2]  # the check, and the shard
    after = run.hashes()
    assert {name: after[name] for name in before if name.startswith("part")} == {
        name: value for name, value in before.items() if name.startswith("part")
    }
    assert PromptStore(run.out).labels.to_pylist() == [*run.words, "new", "newer"]


class Killed(BaseException):
    pass


def test_killed_at_any_file_operation_it_goes_on(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write([*run.words, "日本", "\0"])
    settings = dataclasses.replace(run.settings, shard_rows=9)
    run(settings)
    expected = run.hashes()
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
        assert run.hashes(out) == expected
        if finished:
            assert first_killed == 12  # four shard files, prefix, quarantine, rows, five times the manifest
            return
    pytest.fail("never finished")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"templates": ("the word {label}",)}, "template: a photo of a '{label}' there, the word {label} now"),
        ({"dtype": "int8"}, "dtype: float16 there, int8 now"),
        ({"context": "full"}, "context: content there, full now"),
        ({"embeddings": "projected"}, "embeddings: hidden there, projected now"),
        ({"precision": "bf16"}, "precision: fp32 there, bf16 now"),
        ({"corpus": CorpusSettings(case="lower")}, "case: keep there, lower now"),
        ({"corpus": CorpusSettings(charset="36", case="keep")}, "charset: "),
        ({"corpus": CorpusSettings(normalization=Normalization(max_label_length=9))}, "normalization: "),
    ],
)
def test_other_settings_need_another_folder(run: Any, changed: dict[str, Any], named: str) -> None:
    run()
    before = run.hashes()
    with pytest.raises(DamagedStore) as raised:
        run(dataclasses.replace(run.settings, **changed))
    assert named in str(raised.value)
    # What was rejected on the way is known, and no longer under the manifest's hashes; all else is as it was.
    told = (QUARANTINE_FILE, "manifest.json")
    after = run.hashes()
    assert {name: after[name] for name in after if name not in told} == {
        name: before[name] for name in before if name not in told
    }
    assert verify(run.out) == []


@pytest.mark.parametrize(
    ("case", "labels", "of"),
    [
        ("keep", ["Exit", "EXIT", "7"], [0, 1, 2]),
        ("lower", ["exit", "7"], [0, 1]),
        ("upper-lower-title", ["EXIT", "exit", "Exit", "7"], [0, 0, 0, 3]),
    ],
)
def test_cases(run: Any, case: Any, labels: list[str], of: list[int]) -> None:
    run.write(["Exit", "EXIT", "7"])
    run(run.of_corpus(case=case))
    store = PromptStore(run.out)
    assert store.labels.to_pylist() == labels
    table = pq.read_table(run.out / "part-00000.parquet")
    assert table["embeddings_of"].to_pylist() == of
    embeddings = store.embeddings(np.arange(len(labels)))
    parts = np.split(embeddings.tokens, np.cumsum(embeddings.lengths)[:-1])
    for row, first in enumerate(of):
        assert np.array_equal(parts[row], parts[first])
        assert np.array_equal(embeddings.pooled[row], embeddings.pooled[first])
        assert table["token_ids"][row] == table["token_ids"][first]
    assert run(run.of_corpus(case=case)).computed == 0


def test_a_learnt_charset_grows_with_the_corpus(run: Any) -> None:
    run(run.of_corpus(charset="auto"))
    known = PromptStore(run.out).charset.characters
    run.write([*run.words, "Žluť"])
    assert run(run.of_corpus(charset="auto")).computed == 1
    assert set(PromptStore(run.out).charset.characters) == {*known, *"Žluť"}


def test_estimate_starts_nothing(run: Any) -> None:
    cost = estimate([str(run.corpus)], run.out, run.settings)
    assert cost.rows == len(run.words)
    assert cost.seconds > 0
    assert not run.out.exists()
    run()
    written = sum(path.stat().st_size for path in run.out.glob("part-*.arrow"))
    assert 0.3 < cost.bytes / written < 3
    assert estimate([str(run.corpus)], run.out, run.settings).rows == 0


@pytest.mark.parametrize("name", ["someone/clip", "folder"])
def test_a_clip_of_other_weights_is_another_one(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """By its hub id, whose revision changed, or by its folder, with files of the same sizes and times."""
    from dptr.cache import hub
    from dptr.pipeline.clip.clip_files import BUNDLED

    folder = shutil.copytree(BUNDLED, tmp_path / "clip")
    monkeypatch.setattr(hub, "download", lambda *_: folder)
    monkeypatch.setattr(module, "load_clip", load_clip)
    settings = dataclasses.replace(run.settings, clip=str(folder) if name == "folder" else name)
    run(settings)
    before = run.hashes()
    assert run(settings).computed == 0
    path = folder / "model.safetensors"
    content, times = bytearray(path.read_bytes()), path.stat()
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DamagedStore, match="weights: "):
        run(settings)
    assert run.hashes() == before


def test_a_folder_of_the_users_called_scratch_is_left_alone(run: Any) -> None:
    mine = run.out / ".scratch" / "corpus" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    run()
    assert mine.read_text() == "mine"


def test_the_same_clip_by_another_path_goes_on_with_its_store(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dptr.pipeline.clip.clip_files import BUNDLED

    shutil.copytree(BUNDLED, tmp_path / "clip")
    run(dataclasses.replace(run.settings, clip=str(tmp_path / "clip")))
    run.write([*run.words, "new"])
    monkeypatch.chdir(tmp_path)
    assert run(dataclasses.replace(run.settings, clip="./clip")).computed == 1
    run.write([*run.words, "new", "newer"])
    assert run().computed == 1  # the bundled one has the same weights


def test_full_prompts_padded_otherwise_are_not_mixed_with_those_padded_with_zeros(run: Any) -> None:
    full = dataclasses.replace(run.settings, context="full")
    run(full)
    manifest = Manifest.load(run.out, "prompts")
    assert manifest.identity.pop("padding") == 0
    manifest.details.clear()
    manifest.save(run.out)
    with pytest.raises(DamagedStore, match="padding: None there, 0 now"):
        run(full)


def test_more_rejections_than_allowed_fail_every_time(run: Any) -> None:
    run.write([*run.words, "日本", "x" * 26])
    allowed = dataclasses.replace(run.settings, max_bad=2)
    assert run(allowed).quarantined == 2
    for _ in range(2):
        with pytest.raises(TooManyRejected, match="2 inputs were rejected, 1 are allowed"):
            run(dataclasses.replace(run.settings, max_bad=1))
    assert len(PromptStore(run.out)) == len(run.words)
    assert set(run.rejected()) == {"日本", "x" * 26}


def test_prompts_that_do_not_fit_the_encoder_are_rejected(run: Any) -> None:
    long, special = " ".join("😀" * 40), "<|endoftext|>"
    run.write([*run.words, long, special])
    settings = run.of_corpus(
        unit="line", charset="auto", normalization=Normalization(keep_spaces=True, max_label_length=99)
    )
    summary = run(settings)
    assert summary.rows == len(run.words)
    assert run.rejected() == {
        long: "prompt longer than 77 tokens",
        special: "label spells a special token of the tokenizer",
    }
    assert "prompt longer than 77 tokens" in summary.table


def test_a_store_that_lost_a_file_is_told(run: Any) -> None:
    run()
    (run.out / "part-00001.arrow").unlink()
    with pytest.raises(DamagedStore, match=r"part-00001\.arrow is missing"):
        run()


def test_a_folder_that_cannot_be_written_is_told(run: Any) -> None:
    run.out.write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        run()


@pytest.mark.parametrize("wrong", [{"shard_rows": -1}, {"shard_rows": 0}, {"tokens_per_batch": 0}, {"max_bad": -1}])
def test_numbers_out_of_range_are_told_at_once(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(wrong)).replace('_', '-')} is -?[01]"):
        EmbedTextSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--min-count is 0"):
        CorpusSettings(min_count=0)


def scaled_embeddings(monkeypatch: pytest.MonkeyPatch, factor: float, shard_rows: int) -> None:
    """The bundled CLIP with one word's last state so many times as large."""
    original = TextEncoder.encode

    def encode(self: TextEncoder, ids: list[list[int]], *rest: Any) -> Any:
        embeddings = original(self, ids, *rest)
        if len(ids) == shard_rows:
            embeddings.tokens[embeddings.lengths[:2].sum() - 1] *= factor
        return embeddings

    monkeypatch.setattr(TextEncoder, "encode", encode)
    monkeypatch.setattr(module, "_check", lambda *_: None)


def test_embeddings_that_half_precision_cannot_hold_are_an_error(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scaled_embeddings(monkeypatch, 1e6, run.settings.shard_rows)
    with pytest.raises(UserError, match=r"reach .* beyond the range of float16.*--dtype float32"):
        run()
    run(dataclasses.replace(run.settings, dtype="float32"), run.out.with_name("wide"))
    assert np.isfinite(PromptStore(run.out.with_name("wide")).embeddings(np.arange(4)).tokens).all()


def test_a_corpus_of_which_nothing_can_be_embedded_is_an_error(run: Any) -> None:
    run.write([" ".join("😀" * 40)])
    lines = Normalization(keep_spaces=True, max_label_length=99)
    with pytest.raises(UserError, match=r"no usable label .*prompt longer than 77 tokens \(1\)"):
        run(run.of_corpus(unit="line", charset="auto", normalization=lines))


def test_a_second_corpus_keeps_what_the_first_one_rejected(run: Any, tmp_path: Path) -> None:
    run.write(["stop", "ä" * 3])
    run()
    second = tmp_path / "second.txt"
    second.write_text("door\nöö\n", encoding="utf-8")
    embed_text([str(second)], run.out, run.settings)
    assert run.rejected_from() == {"corpus.txt": ["äää"], "second.txt": ["öö"]}
    # Read again, a source is judged anew.
    run.write(["stop", "üü"])
    run()
    assert run.rejected_from() == {"corpus.txt": ["üü"], "second.txt": ["öö"]}
