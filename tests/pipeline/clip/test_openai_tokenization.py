"""Prompts have the tokens that OpenAI's CLIP was trained on.

The expected ids were worked out by the published rules of byte-pair encoding: lower case; pieces are contractions, runs
of letters, single digits, runs of anything else; a piece is its UTF-8 bytes, the last one marked; the pair that was
merged first in training is merged first.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dptr.pipeline.clip import clip_files
from dptr.pipeline.clip.loading import load_clip
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.text.templates import Template

BEGIN, END, CONTEXT = 49406, 49407, 77

EXPECTED = {
    "a photo of a 'street'": [49406, 320, 1125, 539, 320, 568, 975, 875, 262, 49407],
    "a photo of a 'Exit'": [49406, 320, 1125, 539, 320, 262, 9374, 262, 49407],
    "a photo of a 'the'": [49406, 320, 1125, 539, 320, 713, 797, 262, 49407],
    "a photo of a 'made'": [49406, 320, 1125, 539, 320, 880, 1928, 262, 49407],
    "a photo of a 'llama'": [49406, 320, 1125, 539, 320, 1342, 1696, 262, 49407],
    "a photo of a 'don't'": [49406, 320, 1125, 539, 320, 1896, 525, 713, 262, 49407],
    "a photo of a '24/7'": [49406, 320, 1125, 539, 320, 262, 273, 275, 270, 278, 262, 49407],
    "a photo of a '2024'": [49406, 320, 1125, 539, 320, 262, 273, 271, 273, 275, 262, 49407],
    "a photo of a 'naïve'": [49406, 320, 1125, 539, 320, 262, 1097, 35689, 563, 262, 49407],
    "a photo of a 'Žluť'": [49406, 320, 1125, 539, 320, 262, 129, 122, 664, 129, 354, 262, 49407],
    "a photo of a '中文'": [49406, 320, 1125, 539, 320, 262, 19759, 255, 29032, 485, 262, 49407],
    "a photo of a 'Привет'": [49406, 320, 1125, 539, 320, 262, 26302, 16370, 29503, 110, 22176, 141, 480, 262, 49407],
    "a photo of a '😀'": [49406, 320, 1125, 539, 320, 6, 12832, 262, 49407],
    "a photo of a '-'": [49406, 320, 1125, 539, 320, 6, 28010, 49407],
    "a photo of a '!?'": [49406, 320, 1125, 539, 320, 6, 0, 13610, 49407],
    "a photo of a 'NEW YORK'": [49406, 320, 1125, 539, 320, 262, 686, 2705, 262, 49407],
    "a photo of a 'l'hôtel'": [49406, 320, 1125, 539, 320, 262, 331, 262, 71, 26815, 2226, 262, 49407],
    "a photo of a 'internationalization'": [49406, 320, 1125, 539, 320, 262, 42534, 8026, 262, 49407],
    "a photo of a cat": [49406, 320, 1125, 539, 320, 2368, 49407],
    "  a sign that  says 'OPEN'.  ": [49406, 320, 2292, 682, 1563, 262, 1488, 4645, 49407],
}


@pytest.fixture(scope="module")
def encoder(real_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """An encoder of CLIP's shape and vocabulary with drawn weights; the tokens are what counts."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("openai")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": END + 1, "bos_token_id": BEGIN, "eos_token_id": END}
    torch.manual_seed(1)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**small, "image_size": 32}, projection_dim=32))
    model.save_pretrained(folder)
    real_tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_bytes((clip_files.BUNDLED / "preprocessor_config.json").read_bytes())
    return TextEncoder(load_clip(str(folder)), Template(), context="full")


def test_prompts_are_tokenized_as_openai_does(encoder: TextEncoder) -> None:
    assert dict(zip(EXPECTED, encoder.tokenize(list(EXPECTED)), strict=True)) == EXPECTED


def test_full_embeddings_are_those_of_prompts_padded_with_zeros(encoder: TextEncoder) -> None:
    """OpenAI's tokenizer pads with 0, the token of "!", and the authors' memory keeps its embeddings."""
    prompts = [prompt for prompt in EXPECTED if prompt.startswith("a photo of a '")]
    padded = torch.zeros(len(prompts), CONTEXT, dtype=torch.long)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(EXPECTED[prompt])] = torch.tensor(EXPECTED[prompt])
    with torch.inference_mode():
        theirs = encoder._model.text_model(input_ids=padded).last_hidden_state
    ours = encoder.encode([EXPECTED[prompt] for prompt in prompts])
    assert ours.lengths.tolist() == [CONTEXT - len(encoder.prefix_ids)] * len(prompts)
    kept = torch.from_numpy(ours.tokens).view(len(prompts), -1, theirs.shape[2])
    assert torch.allclose(kept, theirs[:, len(encoder.prefix_ids) :], atol=1e-5)
