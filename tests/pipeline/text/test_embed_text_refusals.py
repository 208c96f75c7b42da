"""What cannot be embedded is rejected, kept in the quarantine, or one line that says what to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dptr.cache.errors import DamagedStore, TooManyRejected, UserError
from dptr.cache.file_names import QUARANTINE_FILE
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.verify import verify
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.text import prompt_store
from dptr.pipeline.text.corpus import CorpusSettings
from dptr.pipeline.text.embed_text import EmbedTextSettings, embed_text


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
    monkeypatch.setattr(prompt_store, "_check", lambda *_: None)


def test_embeddings_that_half_precision_cannot_hold_are_told_with_their_prompt(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled_embeddings(monkeypatch, 1e6, run.settings.shard_rows)
    with pytest.raises(UserError, match=r"prompt \"a photo of a 'the'\" is .* float16 cannot hold.*--dtype float32"):
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


def test_a_flipped_bit_in_the_quarantine_is_found_and_repaired_by_the_same_command(run: Any) -> None:
    run.write(["stop", "äää"])
    run()
    path = run.out / QUARANTINE_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    assert [found.file for found in verify(run.out)] == [QUARANTINE_FILE]
    assert len(PromptStore(run.out)) == 1
    run()
    assert verify(run.out) == []
    assert run.rejected_from() == {"corpus.txt": ["äää"]}


def test_a_quarantine_that_is_damaged_but_still_readable_tells_of_nothing(run: Any) -> None:
    run.write(["stop", "äää"])
    run()
    path = run.out / QUARANTINE_FILE
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "source", pa.array(["somewhere.txt"])), path)
    run()
    assert verify(run.out) == []
    assert run.rejected_from() == {"corpus.txt": ["äää"]}
