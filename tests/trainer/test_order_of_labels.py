"""In which order decoders emit right-to-left labels: as their kind asks for it, and as a run was begun."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dptr.cache.choices import ReadingOrder
from dptr.cache.crops.dataset import WordImages
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.text.corpus import CorpusSettings
from dptr.pipeline.text.embed_text import EmbedTextSettings, embed_text
from dptr.trainer.data.image_batches import ImageBatches
from dptr.trainer.export import export_onnx
from dptr.trainer.finetune import finetune
from dptr.trainer.model.decoders import build_decoder, emitted_by
from dptr.trainer.model.decoders.base import Memory, Targets
from dptr.trainer.model.decoders.ctc import ctc_loss
from dptr.trainer.model.recognizer import Recognizer, load_recognizer
from dptr.trainer.pretrain import PromptStore, pretrain
from dptr.trainer.recipe import Recipe, load_recipe
from dptr.trainer.training.runs import Run, charset_of_run, start_or_continue

HEBREW = Charset("אבגדהו12")
WORDS = ["אבג", "דה", "בד12", "הא", "גב", "ובא", "דג", "אוה", "בגד", "הו"]


def recipe(kind: str = "nrtr", ctc_weight: float = 0.0, **changes: Any) -> Recipe:
    made = Recipe().replace("decoder", kind=kind, dim=32, heads=2, layers=1, feed_forward=32)
    made = made.replace("encoder", dim=32, heads=2, layers=1, patch_height=16, patch_width=8)
    made = made.replace("fmu", queries=8, heads=2).replace("noise", ratio=0.0)
    often = {"steps": 1, "batch_size": 4, "log_every": 1, "validate_every": 1, "checkpoint_every": 1} | changes
    made = made.replace("pretrain", validation_share=0.2, **often)
    return made.replace("finetune", validation_share=0.2, ctc_weight=ctc_weight, **often)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PromptStore:
    folder = tmp_path_factory.mktemp("hebrew")
    (folder / "words.txt").write_text("\n".join(a + b for a in WORDS[:4] for b in WORDS), encoding="utf-8")
    settings = EmbedTextSettings(corpus=CorpusSettings(charset="he"))
    embed_text([str(folder / "words.txt")], folder / "prompts", settings)
    return PromptStore(folder / "prompts")


@pytest.fixture
def crops(tmp_path: Path, draw_crops: Any) -> WordImages:
    return WordImages.open([draw_crops(tmp_path / "crops", WORDS)], HEBREW, Normalization())


@pytest.mark.parametrize(
    ("kind", "order"), [("ctc", "visual"), ("nrtr", "logical"), ("parseq", "logical"), ("parallel", "logical")]
)
def test_ctc_emits_words_as_they_are_seen_and_what_attends_as_they_are_written(
    store: PromptStore, tmp_path: Path, kind: str, order: ReadingOrder
) -> None:
    settings = recipe(kind).replace("memory", kind="columns") if kind == "ctc" else recipe(kind)
    pretrain(store, None, None, settings, tmp_path / "run")
    run = Run.load(tmp_path / "run")
    assert run.charset == dataclasses.replace(store.charset, order=order)
    first = run.charset.encode("אב")[0]
    assert run.charset.characters[first - 1] == ("ב" if order == "visual" else "א")
    assert pretrain(store, None, None, settings, tmp_path / "run").computed == 0


def test_a_charset_without_such_letters_is_every_decoder_s_own() -> None:
    charset = Charset("abc")
    assert emitted_by("ctc", charset) is charset
    assert emitted_by("nrtr", charset) is charset


def start(folder: Path, charset: Charset, kind: str = "nrtr") -> Run:
    return start_or_continue(folder, "pretrain", recipe(kind), charset, 32, {})


@pytest.mark.parametrize("order", ["visual", "logical"])
def test_fine_tuning_goes_on_in_the_order_that_its_decoder_has_learnt(tmp_path: Path, order: ReadingOrder) -> None:
    before = start(tmp_path / "start", HEBREW.emitted_in(order))
    more = Charset(HEBREW.characters + "ז")  # type: ignore[operator]
    assert charset_of_run(more, before.recipe.decoder, before) == more.emitted_in(order)


def test_a_start_that_says_nothing_of_the_order_leaves_it_to_the_decoder(tmp_path: Path) -> None:
    latin = start(tmp_path / "latin", Charset("abc"))
    ctc = recipe("ctc").decoder
    assert charset_of_run(HEBREW, latin.recipe.decoder, latin).order == "logical"
    assert charset_of_run(HEBREW, ctc, latin).order == "visual"
    written = start(tmp_path / "hebrew", HEBREW.emitted_in("logical"))
    assert charset_of_run(written.charset, ctc, written).order == "visual", "another decoder"


def test_a_ctc_loss_beside_a_decoder_is_of_the_letters_as_columns_show_them(crops: WordImages) -> None:
    written = HEBREW.emitted_in("logical")
    batch = ImageBatches(crops, written, recipe(ctc_weight=1.0), 32, [128])(0)
    targets = batch.targets
    assert targets.seen is not None
    for ids, seen in zip(targets.outputs.tolist(), targets.seen.tolist(), strict=True):
        assert HEBREW.decode(torch.tensor(seen).numpy()) == written.decode(torch.tensor(ids).numpy())
        assert ids[:2] != seen[:2]
    padded = targets.padded(25)
    assert padded.of_columns.outputs.shape == padded.outputs.shape == padded.inputs.shape
    torch.manual_seed(0)
    recognizer = Recognizer(recipe(ctc_weight=1.0), written, 32)
    heard: list[Tensor] = []
    assert recognizer.ctc_head is not None
    recognizer.ctc_head.register_forward_hook(lambda module, inputs, out: heard.append(out))
    assert isinstance(batch.images, Tensor)
    tokens = recognizer.tokens(batch.images)
    loss = recognizer._ctc_loss(tokens, targets)
    lengths = torch.full((len(tokens),), heard[0].shape[1])
    labels = [written.decode(torch.tensor(ids).numpy()) for ids in targets.outputs.tolist()]
    assert torch.equal(loss, ctc_loss(heard[0], Targets.of(labels, HEBREW), lengths))


@pytest.mark.parametrize(("charset", "weight"), [(HEBREW, 1.0), (HEBREW.emitted_in("logical"), 0.0)])
def test_labels_are_encoded_twice_only_where_that_is_asked_for(
    crops: WordImages, charset: Charset, weight: float
) -> None:
    targets = ImageBatches(crops, charset, recipe(ctc_weight=weight), 32, [128])(0).targets
    assert targets.seen is None
    assert targets.of_columns is targets


def test_a_recogniser_that_reads_words_as_they_are_written_says_so_in_what_is_exported(
    crops: WordImages, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnxruntime")
    finetune(crops, HEBREW, None, recipe("parallel", ctc_weight=1.0), tmp_path / "run")
    recognizer = load_recognizer(Run.load(tmp_path / "run"))
    assert recognizer.charset.order == "logical"
    export_onnx(recognizer, tmp_path / "model.onnx")
    described = onnx.InferenceSession(tmp_path / "model.onnx").get_modelmeta().custom_metadata_map
    assert (described["order"], json.loads(described["charset"])) == ("logical", HEBREW.characters)


def test_an_attention_decoder_learns_hebrew_words_and_reads_them_as_they_are_written() -> None:
    words: Sequence[str] = ["אב", "בא", "גד12"]
    charset = emitted_by("nrtr", HEBREW)
    torch.manual_seed(0)
    settings = load_recipe("tiny", ["decoder.dim=32", "decoder.heads=2", "decoder.feed_forward=32"], {})
    decoder = build_decoder(settings.decoder, len(charset.characters), 16)
    memory = Memory(torch.randn(len(words), 3, 16))
    optimizer = torch.optim.AdamW(decoder.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        decoder.loss(memory, Targets.of(words, charset)).backward()
        optimizer.step()
    decoder.eval()
    assert [charset.decode(ids) for ids in decoder.decode(memory).argmax(-1).numpy()] == words
