"""Small models of drawn weights of each family, and CLIP's real vocabulary, where its merges are beside the project."""

from __future__ import annotations

import gzip
import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dptr.pipeline.clip.clip_files import BUNDLED

_BPE = Path(__file__).parents[4] / "shared/data/clip/bpe_simple_vocab_16e6.txt.gz"
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TEXT, "hidden_size": 40, "image_size": 32, "patch_size": 8}
LETTERS = string.ascii_letters + string.digits + "'中文字街道"


@pytest.fixture(scope="session")
def published_merges() -> list[tuple[str, str]]:
    """The 48,894 merges that CLIP's authors use, in their order."""
    if not _BPE.is_file():
        pytest.skip(f"{_BPE.name} is not beside the project")
    lines = gzip.decompress(_BPE.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    return [(first, second) for first, second in (line.split() for line in lines)]


@pytest.fixture(scope="session")
def real_tokenizer(published_merges: list[tuple[str, str]]) -> Any:
    """CLIP's tokenizer as transformers builds it from the published merges."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    symbols = list(bytes_to_unicode().values())
    pieces = ["".join(pair) for pair in published_merges]
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *pieces, "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges: Any = published_merges
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def xlm_tokenizer(folder: Path) -> int:
    from transformers import XLMRobertaTokenizer

    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁a", "▁photo", "▁of", "▁'", "str", "eet", *LETTERS, "<mask>"]
    vocabulary: Any = [(piece, 0.0 if piece[0] == "<" else -1.0 / len(piece)) for piece in pieces]
    XLMRobertaTokenizer(vocab=vocabulary, model_max_length=40).save_pretrained(folder)
    return len(pieces)


def bert_tokenizer(folder: Path) -> int:
    from transformers import BertTokenizer

    characters = sorted(set(LETTERS.lower()))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters), "##eet"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    BertTokenizer(vocab=vocabulary, model_max_length=40).save_pretrained(folder)
    return len(pieces)


def sentence_piece_tokenizer(folder: Path, folds_case: bool) -> int:
    """As SigLIP's: pieces of many lengths, an end and no begin; the end is the padding, too."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁photo", "▁of", "str", "eet", *LETTERS]
    model = models.Unigram([(piece, 0.0 if piece[0] == "<" else -1.0 / len(piece)) for piece in pieces], 2, False)
    tokenizer = Tokenizer(model)
    quiet = [normalizers.Replace(Regex(r"['.,!?-]"), "")]
    tokenizer.normalizer = normalizers.Sequence([*([normalizers.Lowercase()] if folds_case else []), *quiet])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    ends: Any = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>" if folds_case else "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **ends).save_pretrained(folder)
    return len(pieces)


def processor(folder: Path, name: str, **settings: Any) -> None:
    import transformers

    getattr(transformers, name)(**settings).save_pretrained(folder)


def square(side: int = 32) -> dict[str, Any]:
    return {"size": {"height": side, "width": side}, "crop_size": {"height": side, "width": side}}


def save_clip(folder: Path) -> None:
    """Of a joint space of another width than both encoders' embeddings."""
    from transformers import CLIPConfig, CLIPModel

    own = json.loads((BUNDLED / "config.json").read_text())["text_config"]
    text = {**own, **TEXT}
    CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUNDLED / name, folder)
    processor(folder, "CLIPImageProcessorPil", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def save_metaclip_2(folder: Path) -> None:
    """Of the bundled CLIP's sizes, with its tokenizer."""
    from transformers import MetaClip2Config, MetaClip2Model

    config = json.loads((BUNDLED / "config.json").read_text())
    sizes: dict[str, Any] = {
        name: {**config[name], "model_type": f"metaclip_2_{name[:-7]}_model"} for name in config if "_con" in name
    }
    MetaClip2Model(MetaClip2Config(**sizes, projection_dim=128)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(BUNDLED / name, folder)


def save_chinese_clip(folder: Path) -> None:
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    text = {**TEXT, "vocab_size": bert_tokenizer(folder), "max_position_embeddings": 40}
    config = ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    ChineseCLIPModel(config).save_pretrained(folder)
    processor(folder, "ChineseCLIPImageProcessorPil", size={"height": 32, "width": 32}, do_center_crop=False)


def save_altclip(folder: Path) -> None:
    from transformers import AltCLIPConfig, AltCLIPModel

    text = {**TEXT, "vocab_size": xlm_tokenizer(folder), "max_position_embeddings": 42, "project_dim": 24}
    config = AltCLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
    AltCLIPModel(config).save_pretrained(folder)
    processor(folder, "CLIPImageProcessorPil", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def save_siglip(folder: Path, folds_case: bool = True) -> None:
    from transformers import SiglipConfig, SiglipModel

    vocabulary = sentence_piece_tokenizer(folder, folds_case)
    text = {**TEXT, "vocab_size": vocabulary, "max_position_embeddings": 32, "projection_size": 40}
    config = SiglipConfig(text_config=text, vision_config=VISION)
    SiglipModel(config).save_pretrained(folder)
    processor(folder, "SiglipImageProcessorPil", size={"height": 32, "width": 32})


def save_siglip_that_leaves_case_to_its_caller(folder: Path) -> None:
    """As SigLIP 2 of one size of pictures is published: SigLIP's encoders with Gemma's tokenizer."""
    save_siglip(folder, folds_case=False)


def save_siglip2(folder: Path) -> None:
    from transformers import Siglip2Config, Siglip2Model, Siglip2Tokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS, "st", "ph"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges: Any = [("s", "t"), ("p", "h")]
    tokenizer = Siglip2Tokenizer(vocab=vocabulary, merges=merges, add_eos_token=True, padding_side="right")
    tokenizer.save_pretrained(folder)
    text = {**TEXT, "vocab_size": len(pieces), "max_position_embeddings": 32, "projection_size": 40}
    vision = {**{key: VISION[key] for key in VISION if key != "image_size"}, "num_patches": 16}
    Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).save_pretrained(folder)
    processor(folder, "Siglip2ImageProcessorPil", patch_size=8, max_num_patches=16)


def save_m_clip(folder: Path) -> None:
    """A text encoder as M-CLIP publishes it, for the bundled CLIP's joint space."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    sizes: dict[str, Any] = {**TEXT, "vocab_size": xlm_tokenizer(folder), "max_position_embeddings": 42}
    config = XLMRobertaConfig(**sizes, pad_token_id=1)
    weights = {f"transformer.{name}": value for name, value in XLMRobertaModel(config).state_dict().items()}
    linear = torch.nn.Linear(32, 128)
    weights |= {f"LinearTransformation.{name}": value for name, value in linear.state_dict().items()}
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    config.save_pretrained(folder / "base")
    mine = {"model_type": "M-CLIP", "modelBase": "base", "transformerDimensions": 32, "numDims": 128}
    (folder / "config.json").write_text(json.dumps(mine))


def save_sentence_transformer(folder: Path) -> None:
    """A text encoder as sentence-transformers publishes it, for the bundled CLIP's joint space."""
    from transformers import DistilBertConfig, DistilBertModel

    vocabulary = bert_tokenizer(folder)
    DistilBertModel(
        DistilBertConfig(
            vocab_size=vocabulary, dim=32, hidden_dim=48, n_layers=2, n_heads=2, max_position_embeddings=40
        )
    ).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "2_Dense").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    dense = {"in_features": 32, "out_features": 128, "bias": False, "activation_function": "torch.nn.Identity"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(dense))
    save_file({"linear.weight": torch.randn(128, 32)}, folder / "2_Dense" / "model.safetensors")
    named = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in named]
    (folder / "modules.json").write_text(json.dumps(modules))


ALONE: dict[str, Callable[[Path], None]] = {
    "clip": save_clip,
    "metaclip_2": save_metaclip_2,
    "chinese_clip": save_chinese_clip,
    "altclip": save_altclip,
    "siglip": save_siglip,
    "siglip, case left": save_siglip_that_leaves_case_to_its_caller,
    "siglip2": save_siglip2,
}
PAIRED: dict[str, Callable[[Path], None]] = {"m-clip": save_m_clip, "sentence": save_sentence_transformer}


@pytest.fixture(scope="session")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Give the name by which a family's small model is loaded; each is saved once."""
    names: dict[str, str] = {}

    def name_of(family: str) -> str:
        if family not in names:
            folder = tmp_path_factory.mktemp("clip")
            torch.manual_seed(len(family))
            (ALONE | PAIRED)[family](folder)
            names[family] = f"{folder}+tiny" if family in PAIRED else str(folder)
        return names[family]

    return name_of
