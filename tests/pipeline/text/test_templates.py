"""Labels in templates: one each, and which token stands for which of its letters."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.progress import set_quiet
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.prompts import PromptStore
from dptr.cli import run_command
from dptr.pipeline.clip.loading import load_clip
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.executors.executor import Part
from dptr.pipeline.executors.merge import merge
from dptr.pipeline.text.embed_text import EmbedTextSettings, embed_text
from dptr.pipeline.text.prompts import PromptEncoders
from dptr.pipeline.text.templates import Template
from dptr.trainer.data.prompt_batches import text_memory


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


#: With prefixes of several lengths, one of which is the begin alone.
TEMPLATES = ("a photo of a '{label}'", "{label}, on a sign", "the word {label} in a picture", "一张写着“{label}”的照片")
SETTINGS = EmbedTextSettings(shard_rows=4, templates=TEMPLATES, dtype="float32")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.mark.parametrize("case", ["keep", "upper-lower-title"])
def test_every_row_has_the_embeddings_that_its_own_template_alone_would_give(run: Any, case: str) -> None:
    corpus = dataclasses.replace(SETTINGS.corpus, case=case)  # type: ignore[arg-type]
    run(dataclasses.replace(SETTINGS, corpus=corpus))
    store, rows = PromptStore(run.out), rows_of(run.out)
    assert len({row["template"] for row in rows}) > 2
    assert [len(prefix) for prefix in store.prefixes] == [len(ids) for ids in store.manifest.identity["prefix_ids"]]
    everything = np.arange(len(rows))
    embeddings = store.embeddings(everything)
    own = np.split(embeddings.tokens, np.cumsum(embeddings.lengths)[:-1])
    letters = store.token_letters(everything)
    encoders = [TextEncoder(load_clip("tiny"), Template(text)) for text in TEMPLATES]
    for row, mine, of_mine, pooled in zip(rows, own, letters, embeddings.pooled, strict=True):
        encoder = encoders[row["template"]]
        expected = encoder.encode([row["token_ids"]])
        assert np.abs(mine - expected.tokens).max() <= 1e-5
        assert np.abs(pooled - expected.pooled[0]).max() <= 2e-3
        assert np.abs(store.prefixes[row["template"]] - encoder.prefix).max() <= 1e-6
        assert of_mine.sum() == len(row["prompt"]) - len(TEMPLATES[row["template"]].replace("{label}", ""))
        assert row["prompt"].lower() == encoder.template.prompt(row["label"]).lower()


def test_the_memory_has_each_rows_own_prefix(run: Any) -> None:
    run(SETTINGS)
    store = PromptStore(run.out)
    rows = np.array([5, 0, 3, 9, 5, 7, 1])
    memory = text_memory(store, rows).to("cpu")
    embeddings = store.embeddings(rows)
    own = np.split(embeddings.tokens, np.cumsum(embeddings.lengths)[:-1])
    for row, mine, pooled, which in zip(
        range(len(rows)), own, embeddings.pooled, store.templates_of(rows), strict=True
    ):
        expected = np.concatenate([pooled[None], store.prefixes[which], mine])
        real = memory.real[row]
        assert int(real.sum()) == len(expected)
        torch.testing.assert_close(memory.tokens[row][real], torch.from_numpy(expected))
        assert not memory.tokens[row][~real].any()


def test_a_labels_template_hangs_on_seed_and_label_alone_and_all_are_used_alike() -> None:
    labels = [f"word{number}" for number in range(2000)]
    encoders, others = (PromptEncoders(load_clip("tiny"), TEMPLATES, seed=seed) for seed in (1, 2))
    which = [encoders.which(label) for label in labels]
    assert [encoders.which(label) for label in reversed(labels)] == which[::-1]
    assert all(400 < count < 600 for count in Counter(which).values())
    assert [others.which(label) for label in labels] != which


def test_a_run_that_goes_on_and_parts_that_are_merged_give_the_bytes_of_one_run(run: Any, tmp_path: Path) -> None:
    run(SETTINGS)
    whole = run.hashes()
    for number in (2, 1):
        embed_text([str(run.corpus)], tmp_path / "parts", SETTINGS, Part(number, 2))
    merge(tmp_path / "parts")
    shards = {name for name in whole if name.startswith(("part-", "prefix", "rows"))}
    assert len(shards) == 2 * 4 + 2
    assert {name: run.hashes(tmp_path / "parts")[name] for name in shards} == {name: whole[name] for name in shards}
    assert run(SETTINGS).computed == 0
    run.write([*run.words, "lantern", "harbour"])
    assert run(SETTINGS).computed == 2
    with pytest.raises(DamagedStore, match="template_seed"):
        run(dataclasses.replace(SETTINGS, seed=1))
    with pytest.raises(DamagedStore, match="template"):
        run(dataclasses.replace(SETTINGS, templates=TEMPLATES[:2]))


def test_a_store_of_one_template_is_as_it_was(run: Any) -> None:
    run()
    manifest = checksummed.read_json(run.out / "manifest.json")
    assert manifest["format_version"] == 2
    assert manifest["identity"]["template"] == "a photo of a '{label}'"
    assert "template" not in pq.read_schema(run.out / "part-00000.parquet").names
    assert "template_seed" not in manifest["identity"]


@pytest.mark.parametrize("templates", [(), ("{label}", "{label}"), ("{label}", "no place for it")])
def test_templates_that_make_no_sense_are_rejected(run: Any, templates: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="template"):
        run(dataclasses.replace(SETTINGS, templates=templates))


def test_the_command_takes_several_and_what_is_damaged_comes_back(tmp_path: Path, capsys: Any) -> None:
    set_quiet(True)
    words = [
        first + second for first in ("red", "sun", "sea", "oak") for second in ("ford", "lea", "ton", "by", "wick")
    ]
    (tmp_path / "words.txt").write_text("\n".join(words))
    (tmp_path / "photos").mkdir()
    from PIL import Image

    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / f"{number}.png")
    to = ["--workspace", str(tmp_path / "w"), "--quiet"]
    templates = [part for text in TEMPLATES for part in ("--template", text)]
    embed = ["embed-text", str(tmp_path / "words.txt"), *templates, "--cover-subwords", "1", "--charset", "36", *to]
    assert run_command([*embed, "--dry-run"]) == 0
    assert run_command(embed) == 0
    assert run_command(["build-orp-bank", str(tmp_path / "photos"), *to]) == 0
    assert run_command(["mine-neighbours", "-k", "4", *to]) == 0
    assert run_command(["verify", *to]) == 0
    for name in ("prefix.arrow", "part-00000.arrow", "part-00000.parquet"):
        path = tmp_path / "w/prompts" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
        assert run_command(["verify", "--repair", *to]) == 0, name
    capsys.readouterr()
    query = "select template, count(*) as n from prompts group by all order by all"
    assert run_command(["sql", query, "--json", *to]) == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["result"]) == len(TEMPLATES)
    small = ["decoder.dim=32", "decoder.heads=2", "decoder.layers=1", "decoder.feed_forward=32"]
    for kind in ("tokens", "pooled"):
        settings = [part for change in [*small, f"memory.kind={kind}"] for part in ("--set", change)]
        assert run_command(["pretrain", "--steps", "2", "-o", str(tmp_path / kind), *settings, *to]) == 0
        assert run_command(["read", str(tmp_path / kind), str(tmp_path / "photos/0.png"), *to]) == 0
    assert run_command(["report", str(tmp_path / "tokens"), *to]) == 0
