"""Each family of CLIPs, as a small model of drawn weights on disk, gives what transformers' own model gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

from dptr.cache.errors import UserError
from dptr.cache.progress import set_quiet
from dptr.cache.stores.image_features import WordCropStore
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cli import run_command
from dptr.pipeline.clip.clip_files import BUNDLED, find_clip
from dptr.pipeline.clip.loading import Clip, ImageEncoder, load_clip
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.text.templates import Template
from dptr.trainer.model.encoders.clip import ClipEncoder, describe, weights_hash, whole_hash
from dptr.trainer.recipe import EncoderSettings

#: The families that ``small_clip`` makes: whole CLIPs, and text encoders beside the bundled CLIP's image encoder.
ALONE = ("clip", "chinese_clip", "altclip", "siglip", "siglip, case left", "siglip2")
PAIRED = ("m-clip", "sentence")
LABELS = ["street", "7", "ab中文", "the", "x" * 12, "字"]
TEMPLATE = Template("a photo of a '{label}'")
#: Of the embeddings' own size, which is about one.
NEAR = 1e-5


@pytest.fixture(scope="module")
def loaded(small_clip: Callable[[str], str]) -> Callable[[str], Clip]:
    clips: dict[str, Clip] = {}
    return lambda family: clips.setdefault(family, load_clip(small_clip(family)))


@torch.inference_mode()
def theirs(clip: Clip, prompts: list[str], family: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Transformers alone, on prompts padded as the family's authors do: embeddings and pooled vectors."""
    padding = "longest" if family not in ("siglip", "siglip, case left", "siglip2") else "max_length"
    encoded = clip.tokenizer(prompts, padding=padding, max_length=32, return_tensors="pt")
    inputs = {"input_ids": encoded["input_ids"]}
    if padding == "longest":
        inputs["attention_mask"] = encoded["attention_mask"]
    if family not in PAIRED:
        output = clip.model.get_text_features(**inputs)
        return output.last_hidden_state.numpy(), output.pooler_output.numpy()
    embeddings = clip.model.transformer(**inputs)[0]
    mask = inputs["attention_mask"][..., None]
    return embeddings.numpy(), clip.model.projection((embeddings * mask).sum(1) / mask.sum(1)).numpy()


@pytest.mark.parametrize("family", [*ALONE, *PAIRED])
def test_text_embeddings_and_vectors_are_transformers_own_of_the_padded_prompt(
    family: str, loaded: Callable[[str], Clip]
) -> None:
    clip = loaded(family)
    prompts = [TEMPLATE.prompt(label) for label in LABELS]
    hidden, pooled = theirs(clip, prompts, family)
    # Hidden embeddings that are no wider than the joint space stay as they are, in all else they are projected.
    encoder = TextEncoder(clip, TEMPLATE)
    assert encoder.embeddings == ("hidden" if family == "altclip" else "projected")
    expected = hidden
    if encoder.embeddings == "projected":
        with torch.inference_mode():
            expected = clip.family.project_text(clip.model, torch.from_numpy(hidden)).numpy()
    ids = encoder.tokenize(prompts)
    embeddings = encoder.encode(ids)
    assert bool(encoder.prefix_ids) == (family == "clip"), "only what looks one way shares a prefix"
    rows = np.split(embeddings.tokens, np.cumsum(embeddings.lengths)[:-1])
    for own, row, tokens in zip(rows, expected, ids, strict=True):
        ours = np.concatenate([encoder.prefix, own])
        assert len(ours) == len(tokens)
        assert np.abs(ours - row[: len(ours)]).max() <= NEAR * max(1, np.abs(row).max())
    assert np.abs(embeddings.pooled - pooled).max() <= NEAR * max(1, np.abs(pooled).max())
    assert encoder.check(ids) <= 1e-5
    if clip.family.way == "exact length":
        with pytest.raises(UserError, match="is bidirectional"):
            TextEncoder(clip, TEMPLATE, context="full")
    distinct = {tuple(np.round(vector, 4)) for vector in embeddings.pooled}
    assert len(distinct) == len(LABELS)


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_padding_that_was_seen_in_training_can_be_kept(family: str, loaded: Callable[[str], Clip]) -> None:
    encoder = TextEncoder(loaded(family), TEMPLATE, context="full")
    prompts = [TEMPLATE.prompt(label) for label in LABELS[:2]]
    embeddings = encoder.encode(encoder.tokenize(prompts))
    hidden, _ = theirs(loaded(family), prompts, family)
    with torch.inference_mode():
        expected = loaded(family).family.project_text(loaded(family).model, torch.from_numpy(hidden)).numpy()
    assert np.abs(embeddings.tokens.reshape(expected.shape) - expected).max() <= NEAR


@pytest.mark.parametrize("family", ["siglip", "siglip, case left", "siglip2"])
def test_siglip_folds_case_whoever_should_do_it(family: str, loaded: Callable[[str], Clip]) -> None:
    encoder = TextEncoder(loaded(family), TEMPLATE)
    small, capital = encoder.tokenize(["a photo of a 'street'", "A photo of a 'STREET'"])
    assert small == capital


def pictures(size: tuple[int, int] = (32, 32)) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.mark.parametrize("family", [*ALONE, *PAIRED])
def test_image_vectors_are_transformers_own_and_tokens_are_in_the_joint_space(
    family: str, loaded: Callable[[str], Clip]
) -> None:
    clip = loaded(family)
    encoder = ImageEncoder(clip)
    tokens, pooled = encoder.encode(np.stack([encoder.preprocess(picture) for picture in pictures()]))
    inputs = clip.image_processor(images=pictures(), return_tensors="pt")
    with torch.inference_mode():
        output = clip.image_model.get_image_features(**inputs)
    assert tokens.shape == (3, encoder.tokens, pooled.shape[1])
    assert encoder.dim == pooled.shape[1] == TextEncoder(clip, TEMPLATE).prefix.shape[1]
    assert np.abs(pooled - output.pooler_output.numpy()).max() <= NEAR * max(1, np.abs(pooled).max())
    hidden = output.last_hidden_state
    with torch.inference_mode():
        if encoder.class_tokens:
            vision, project = clip.image_model.vision_model, clip.image_model.visual_projection
            expected = project(vision.post_layernorm(hidden[:, 5]))
            assert np.allclose(tokens[:, 0], pooled)
        else:
            expected = clip.image_model.vision_model.head(hidden[:, 5:6])
    assert np.abs(tokens[:, 5] - expected.numpy()).max() <= NEAR * max(1, float(expected.abs().max()))
    of_another_shape = encoder.preprocess(pictures((20, 50))[0])
    assert (
        of_another_shape.shape
        == encoder.preprocess_word(pictures((20, 50))[0]).shape
        == encoder.preprocess(pictures()[0]).shape
    )


@pytest.mark.parametrize("family", [*ALONE, *PAIRED])
def test_the_encoder_of_a_recogniser_gives_the_same_tokens(family: str, loaded: Callable[[str], Clip]) -> None:
    clip, folder = loaded(family), find_clip(loaded(family).name)
    encoder = ClipEncoder(EncoderSettings(kind=f"clip:{clip.name}", config=describe(folder)))
    encoder.load(folder)
    image_encoder = ImageEncoder(clip)
    assert (encoder.dim, encoder.grid[0] * encoder.grid[1]) == (
        image_encoder.dim,
        image_encoder.tokens - image_encoder.class_tokens,
    )
    (picture,) = pictures(encoder.size)[:1]
    expected, pooled = image_encoder.encode(image_encoder.preprocess_word(picture)[None])
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        tokens, vector = encoder.eval().tokens_and_pooled(pixels)
    torch.testing.assert_close(
        tokens, torch.from_numpy(expected[:, image_encoder.class_tokens :]), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(vector, torch.from_numpy(pooled), atol=1e-4, rtol=1e-4)
    assert whole_hash(folder) == clip.weights.rpartition("+")[2]
    assert weights_hash({f"encoder.{name}": value for name, value in encoder.encoder.state_dict().items()}) == (
        clip.image_weights
    )


def test_a_pair_of_two_widths_is_rejected(small_clip: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match=r"text vectors of .* are 128 wide, its image vectors 24"):
        load_clip(small_clip("m-clip").replace("+tiny", f"+{small_clip('clip')}"))


def test_a_text_encoder_alone_is_told_how_to_name_a_pair(small_clip: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match=r"type 'M-CLIP'.*TEXT\+IMAGE"):
        load_clip(small_clip("m-clip").removesuffix("+tiny"))
    with pytest.raises(UserError, match=r"no text encoder of M-CLIP or sentence-transformers"):
        load_clip("tiny+tiny".replace("tiny+", f"{small_clip('clip')}+"))


def test_a_text_encoder_that_lacks_a_weight_is_rejected(small_clip: Callable[[str], str], tmp_path: Path) -> None:
    folder = shutil.copytree(small_clip("m-clip").removesuffix("+tiny"), tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    weights.pop("transformer.encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"differ in encoder\.layer\.1\.output\.dense\.weight"):
        load_clip(f"{folder}+tiny")


def test_a_folder_whose_name_has_a_plus_is_no_pair(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED, tmp_path / "a+b")
    assert load_clip(str(tmp_path / "a+b")).weights == load_clip("tiny").weights


SMALL = ["decoder.kind=nrtr", "decoder.dim=32", "decoder.heads=2", "decoder.layers=1", "decoder.feed_forward=32"]
SMALL += ["pretrain.batch_size=8", "pretrain.validation_share=0.25"]


@pytest.mark.parametrize("family", ["chinese_clip", "siglip2", "m-clip"])
def test_every_stage_takes_every_family(family: str, small_clip: Callable[[str], str], tmp_path: Path) -> None:
    """From words and photos to a decoder that reads pictures; and what is damaged on the way comes back."""
    set_quiet(True)
    clip, work = small_clip(family), tmp_path
    words = [*LABELS, *("red", "door", "sun", "9a", "of", "not", "道", "街", "as", "if")]
    (work / "words.txt").write_text("\n".join([*words, "Ω"]), encoding="utf-8")
    (work / "chars.txt").write_text("".join(sorted({*"".join(words), "Ω"})), encoding="utf-8")
    for folder in ("photos", "crops"):
        (work / folder).mkdir()
        for number, picture in enumerate(pictures((60, 90))):
            picture.save(work / folder / f"{number}.png")
    (work / "crops" / "labels.tsv").write_text("0.png\tred\n1.png\tdoor\n2.png\tsun\n")
    to = ["--workspace", str(work / "w"), "--quiet"]
    embed = ["embed-text", str(work / "words.txt"), "--clip", clip, "--charset", str(work / "chars.txt"), *to]
    assert run_command(embed) == 0
    bank = ["build-orp-bank", str(work / "photos"), "--clip", clip, "--crops-per-image", "3", *to]
    assert run_command(bank) == 0
    assert run_command(["mine-neighbours", "-k", "4", *to]) == 0
    assert run_command(["embed-crops", str(work / "crops"), "--clip", clip, "--copies", "2", *to]) == 0
    store, crops = PromptStore(work / "w/prompts"), OrpBank(work / "w/orp")
    assert store.dim == crops.dim
    assert len(crops) == 9
    assert len(WordCropStore(work / "w/image_features")) == 3
    rejected = pq.read_table(work / "w/prompts/quarantine.parquet").to_pylist()
    if family != "siglip2":  # it spells in bytes
        assert [(row["item"], row["reason"]) for row in rejected] == [("Ω", "a character that the tokenizer lacks")]
    for damaged in ("w/prompts/part-00000.arrow", "w/orp/part-00000.arrow", "w/image_features/part-00000.arrow"):
        data = bytearray((work / damaged).read_bytes())
        data[len(data) // 2] ^= 255
        (work / damaged).write_bytes(data)
    assert run_command(["verify", "--repair", *to]) == 0
    for kind in ("tokens", "pooled"):
        changes = [part for change in [*SMALL, f"memory.kind={kind}"] for part in ("--set", change)]
        assert run_command(["pretrain", "--steps", "2", "-o", str(work / kind), *changes, *to]) == 0
        assert run_command(["read", str(work / kind), str(work / "crops/0.png"), *to]) == 0
