from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from dptr.cache.choices import EmbeddingsDtype
from dptr.cache.errors import DptrError, UserError
from dptr.cache.stores.shards import Embeddings, EmbeddingsReader, write_shard
from dptr.pipeline.clip.clip_files import BUNDLED
from dptr.pipeline.clip.loading import Clip, load_clip
from dptr.pipeline.clip.text_encoder import Context, EmbeddingsKind, TextEncoder, _embeddings_kind
from dptr.pipeline.text.templates import DEFAULT_TEMPLATE, Template

CONTRACTED = ["street", "the", "red", "very", "made", "llama", "door"]
LABELS = [*CONTRACTED, "a", "Q", "7", "s'", "-", "!x", "naïve", "中文", "don't", "\u0301x", "the-end", "x" * 25, "2024"]
TEMPLATES = [DEFAULT_TEMPLATE, "{label}", "{label} on a sign", "the word {label} on a sign", "a\tphoto  of  '{label}'"]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("tiny")


@pytest.fixture(scope="module", params=["bundled", "real"])
def any_clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """The bundled CLIP, and one of the same layers with the real vocabulary."""
    if request.param == "bundled":
        return load_clip("tiny")
    tokenizer = request.getfixturevalue("real_tokenizer")
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("real")
    config = json.loads((BUNDLED / "config.json").read_text())
    ends = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    torch.manual_seed(1)
    model = CLIPModel(CLIPConfig(**{**config, "text_config": {**config["text_config"], **ends}}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_bytes((BUNDLED / "preprocessor_config.json").read_bytes())
    return load_clip(str(folder))


@torch.inference_mode()
def plain(clip: Clip, prompts: list[str], kind: EmbeddingsKind = "hidden") -> tuple[NDArray[Any], NDArray[Any], Any]:
    """Transformers alone, padded with 0 to 77, nothing masked, as in the authors' code."""
    rows = [torch.tensor(ids) for ids in clip.tokenizer(prompts)["input_ids"]]
    ids = torch.stack([F.pad(row, (0, 77 - len(row)), value=0) for row in rows])
    output = clip.model.get_text_features(input_ids=ids)
    embeddings = output.last_hidden_state
    embeddings = clip.model.text_projection(embeddings) if kind == "projected" else embeddings
    return embeddings.float().numpy(), output.pooler_output.float().numpy(), [len(row) for row in rows]


def rows(encoder: TextEncoder, embeddings: Embeddings) -> list[NDArray[np.float32]]:
    parts = np.split(embeddings.tokens, np.cumsum(embeddings.lengths)[:-1])
    return [np.concatenate([encoder.prefix, part]) for part in parts]


def encode(
    clip: Clip, labels: list[str], text: str = DEFAULT_TEMPLATE, **settings: Any
) -> tuple[TextEncoder, Embeddings]:
    encoder = TextEncoder(clip, Template(text), **settings)
    return encoder, encoder.encode(encoder.tokenize([Template(text).prompt(label) for label in labels]))


@pytest.mark.parametrize("text", TEMPLATES)
@pytest.mark.parametrize("context", ["content", "full"])
@pytest.mark.parametrize("kind", ["hidden", "projected"])
def test_embeddings_are_those_of_transformers(clip: Clip, text: str, context: Context, kind: EmbeddingsKind) -> None:
    encoder, embeddings = encode(clip, LABELS, text, embeddings=kind, context=context)
    theirs, pooled, lengths = plain(clip, [Template(text).prompt(label) for label in LABELS], kind)
    for ours, row, length in zip(rows(encoder, embeddings), theirs, lengths, strict=True):
        assert len(ours) == (77 if context == "full" else length)
        assert np.abs(ours - row[: len(ours)]).max() <= 1e-4
    assert np.abs(embeddings.pooled - pooled).max() <= 1e-4


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stored_embeddings_point_where_transformers_do(
    clip: Clip, tmp_path: Path, precision: Any, dtype: EmbeddingsDtype
) -> None:
    import pyarrow as pa

    encoder, embeddings = encode(load_clip("tiny", precision), LABELS)
    shard = write_shard(tmp_path, 0, pa.table({"id": np.arange(len(LABELS))}), embeddings, dtype, {})
    read = EmbeddingsReader(tmp_path, [shard]).gather(np.arange(len(LABELS)))
    theirs, _, _ = plain(clip, [Template().prompt(label) for label in LABELS])
    for ours, row in zip(rows(encoder, read), theirs, strict=True):
        row = row[: len(ours)]
        cosine = (ours * row).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(row, axis=1)
        assert cosine.min() >= 0.999


def test_prompts_have_exactly_the_tokenizers_tokens(any_clip: Clip) -> None:
    encoder = TextEncoder(any_clip, Template())
    prompts = [Template().prompt(label) for label in CONTRACTED]
    assert encoder.tokenize(prompts) == [any_clip.tokenizer(prompt)["input_ids"] for prompt in prompts]
    if any_clip.name != "tiny":
        own = [
            any_clip.tokenizer.convert_ids_to_tokens(ids)[len(encoder.prefix_ids)] for ids in encoder.tokenize(prompts)
        ]
        assert own == [quoted + "</w>" for quoted in ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")]
    theirs, _, lengths = plain(any_clip, prompts)
    for ours, row, length in zip(
        rows(encoder, encoder.encode(encoder.tokenize(prompts))), theirs, lengths, strict=True
    ):
        assert len(ours) == length
        assert np.abs(ours - row[:length]).max() <= 1e-4


@pytest.mark.parametrize("text", TEMPLATES)
def test_every_prompt_starts_with_the_shared_tokens(any_clip: Clip, text: str) -> None:
    encoder = TextEncoder(any_clip, Template(text))
    generator = np.random.default_rng(0)
    alphabet = [*map(chr, range(33, 127)), *"\u0301éßİ中のяअ\u094d😀ﬁ"]
    labels = ["".join(generator.choice(alphabet, generator.integers(1, 8))) for _ in range(3000)]
    shared = encoder.prefix_ids
    assert all(ids[: len(shared)] == shared for ids in encoder.tokenize([Template(text).prompt(w) for w in labels]))
    whole_words = len(text.split("{label}")[0].split()) - ("'{" in text)
    assert len(shared) >= 1 + whole_words


@pytest.mark.parametrize(
    ("text", "at_least"),
    [
        ("一张写着“{label}”的照片", 5),  # the begin and a token or more for each of four characters
        ("一张{label}的照片", 1),  # letters of the label join those before it
        ("una foto de «{label}»", 4),
        ("«{label}»", 1),
        ("the word-{label}", 3),
        ("看{label}", 1),
    ],
)
def test_what_no_label_can_change_is_found_without_white_space_too(any_clip: Clip, text: str, at_least: int) -> None:
    encoder = TextEncoder(any_clip, Template(text))
    generator = np.random.default_rng(1)
    alphabet = [*map(chr, range(33, 127)), *"\u0301éßİ中のяअ\u094d😀ﬁ“”«»、。「・한あعשก½€"]
    labels = ["".join(generator.choice(alphabet, generator.integers(1, 8))) for _ in range(3000)]
    shared = encoder.prefix_ids
    ids = encoder.tokenize([Template(text).prompt(word) for word in labels])
    assert all(row[: len(shared)] == shared for row in ids)
    assert len(shared) >= at_least
    if at_least == 1:
        assert len(shared) == 1


def test_results_do_not_depend_on_batches(clip: Clip) -> None:
    encoder = TextEncoder(clip, Template())
    ids = encoder.tokenize([Template().prompt(label) for label in LABELS * 20])
    whole, single = encoder.encode(ids, 100_000), encoder.encode(ids, 1)
    assert np.abs(whole.tokens - single.tokens).max() <= 1e-5
    assert np.array_equal(encoder.encode(ids).tokens, encoder.encode(ids).tokens)


def require_that_check_stops_one_percent(
    encoder: TextEncoder, ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = [(k, v * 1.01) for k, v in cast(Any, encoder._forward)._keys_values]
    monkeypatch.setattr(encoder._forward, "_keys_values", values)
    with pytest.raises(DptrError, match="differ from transformers"):
        encoder.check(ids)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_the_check_stops_what_differs_relative_to_the_size_of_the_embeddings(
    clip: Clip, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of embeddings a ten thousandth as large an absolute tolerance lets everything pass, of large ones nothing."""
    scaled = dataclasses.replace(clip, model=copy.deepcopy(clip.model))
    for parameter in scaled.model.text_model.final_layer_norm.parameters():
        parameter.mul_(scale)
    encoder = TextEncoder(scaled, Template())
    ids = encoder.tokenize([Template().prompt(label) for label in LABELS])
    assert encoder.check(ids) <= 1e-5
    require_that_check_stops_one_percent(encoder, ids, monkeypatch)


def test_a_template_longer_than_the_context_is_told_at_once(clip: Clip) -> None:
    with pytest.raises(UserError, match=r"template has \d+ tokens .*takes 77"):
        TextEncoder(clip, Template("word " * 80 + "{label}"))


def test_a_clip_whose_embeddings_are_no_numbers_is_told_at_once(clip: Clip) -> None:
    broken = dataclasses.replace(clip, model=copy.deepcopy(clip.model))
    broken.model.text_model.final_layer_norm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="NaN or infinity"):
        TextEncoder(broken, Template())
    late = dataclasses.replace(clip, model=copy.deepcopy(clip.model))
    late.model.text_model.embeddings.token_embedding.weight[clip.tokenizer("q")["input_ids"][1]] = torch.inf
    encoder = TextEncoder(late, Template("{label}"))
    with pytest.raises(UserError, match="NaN or infinity"):
        encoder.encode(encoder.tokenize(["q"]))


def test_check_stops_what_differs_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(load_clip("tiny", "bf16"), Template())
    ids = encoder.tokenize([Template().prompt(label) for label in LABELS])
    encoder.check(ids)
    monkeypatch.setattr(
        encoder._forward, "_keys_values", [(k, -v) for k, v in cast(Any, encoder._forward)._keys_values]
    )
    with pytest.raises(DptrError, match="differ from transformers"):
        encoder.check(ids)


def test_metaclip_2_shares_its_prefix(small_clip: Callable[[str], str]) -> None:
    encoder, embeddings = encode(load_clip(small_clip("metaclip_2")), LABELS)
    assert len(encoder.prefix_ids) > 4
    assert encoder.check(encoder.tokenize([Template().prompt(label) for label in LABELS])) <= 1e-4
    assert len(embeddings.lengths) == len(LABELS)


def test_hidden_embeddings_need_the_joint_width(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip.model.config, "projection_dim", 64)
    assert _embeddings_kind(clip, None) == "projected"
    with pytest.raises(UserError, match="128 wide, image embeddings 64"):
        TextEncoder(clip, Template(), embeddings="hidden")
