"""Take a run elsewhere: ONNX, one safetensors file, or a decoder under PARSeq's or OpenOCR's names."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dptr.cache.crops.dataset import WordImages, preprocess
from dptr.cache.errors import UserError
from dptr.cache.file_names import SAFETENSORS, WEIGHTS_FILE
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import atomic_path
from dptr.cache.text.lexicon import Lexicon, Words, word_counts
from dptr.trainer import onnx_graph
from dptr.trainer.choices import ExportTarget
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.parseq import ParseqDecoder
from dptr.trainer.model.model_file import ModelFile, finite_weights, load_model, save_model, save_tensors
from dptr.trainer.model.reading import width_for
from dptr.trainer.model.recognizer import Recognizer, load_recognizer, require_ctc
from dptr.trainer.training.runs import Run, Trained

_MADE_UP_IMAGES = 16


@dataclass(frozen=True)
class ExportSummary:
    """Result of an export.

    Attributes:
        out: the file. tensors: how many it holds (0 for ONNX). checked: images read by both torch and onnxruntime.
        largest_difference: between the two, of any character's score.
    """

    out: Path
    tensors: int
    checked: int
    largest_difference: float
    seconds: float


def export(
    run: Trained,
    target: ExportTarget,
    out: Path,
    crops: WordImages | None = None,
    half: bool = False,
    lexicon: Words | None = None,
) -> ExportSummary:
    """Write a run, or a model file, as ``target``; ONNX is checked on made-up images, and on ``crops`` when given.

    A safetensors file keeps ``lexicon``, or those of the run or the model file it is made from.

    Raises:
        UserError: the run cannot become that. DptrError: the exported graph does not read as torch does.
    """
    started = time.monotonic()
    tensors, checked, apart = 0, 0, 0.0
    if crops is not None and target != "onnx":
        raise UserError("--data is only for --to onnx", f"Leave --data out with --to {target}")
    if half and target != "safetensors":
        raise UserError(f"{target} is not stored in half precision", "Leave --half out")
    if lexicon is not None and target != "safetensors":
        raise UserError(f"{target} cannot store a lexicon", "Leave --lexicon out")
    if isinstance(run, ModelFile) and out.exists() and out.samefile(run.path):
        raise UserError(f"{out} is the model itself", "Name another file with -o")
    if target == "onnx":
        checked, apart = _onnx(run, out, crops)
    elif target == "safetensors":
        save_model(run, out, half, _kept_words(run, lexicon))
        tensors = len(run.weights())
    else:
        tensors = _other_names(run, target, out)
    return ExportSummary(out, tensors, checked, apart, time.monotonic() - started)


def _kept_words(run: Trained, words: Words | None) -> Lexicon | None:
    if words is None:
        return run.lexicon()
    counts = word_counts(words)
    if counts is None:
        return None
    require_ctc(run.recipe.decoder.kind == "ctc", run.name)
    return Lexicon(counts)


def default_path(run: Trained, target: ExportTarget) -> Path:
    """Default output of an export: in the run's folder, or for a model file in the current one."""
    if not isinstance(run, Run):
        ending = {"onnx": ".onnx", "safetensors": SAFETENSORS}.get(target, f"-{target}{SAFETENSORS}")
        return Path(Path(run.name).stem + ending)
    return run.folder / {"onnx": "model.onnx", "safetensors": WEIGHTS_FILE}.get(target, f"{target}{SAFETENSORS}")


def _recognizer(run: Trained) -> Recognizer:
    if isinstance(run, ModelFile):
        return load_model(run.path)
    if not isinstance(run, Run):
        raise TypeError(f"{run.name} is neither a run nor a model file")
    run.require_recogniser()
    return load_recognizer(run)


def _onnx(run: Trained, out: Path, crops: WordImages | None) -> tuple[int, float]:
    recognizer = _recognizer(run)
    finite_weights(run)
    # The graph holds none, and is compared with what torch reads.
    recognizer.prefer_words(None)
    height, widths = recognizer.image_size[0], recognizer.encoder.widths
    images = {width: [*_made_up(height, width)] for width in widths}
    for row in range(0 if crops is None else len(crops)):
        picture = crops.image(row)  # type: ignore[union-attr]
        width = width_for(picture, height, widths)
        images[width].append(preprocess(picture, height, width))
    onnx_graph.export_onnx(recognizer, out)
    try:
        apart = [onnx_graph.largest_difference(recognizer, out, np.stack(found)) for found in images.values()]
        return sum(map(len, images.values())), max(apart)
    except Exception:
        out.unlink(missing_ok=True)
        raise


def _made_up(height: int, width: int) -> NDArray[np.uint8]:
    """Images of smooth blotches, which a recogniser takes for all kinds of characters."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (_MADE_UP_IMAGES, 3, max(height // 8, 1), max(width // 8, 1)), np.uint8)
    tall = coarse.repeat(-(-height // coarse.shape[2]), axis=2)
    return np.ascontiguousarray(tall.repeat(-(-width // coarse.shape[3]), axis=3)[:, :, :height, :width])


def _other_names(run: Trained, family: Family, out: Path) -> int:
    decoder = build_decoder(run.recipe.decoder, len(run.charset.characters), run.memory_dim)
    if not isinstance(decoder, ParseqDecoder):
        raise UserError(
            f"{run.name} holds a {run.recipe.decoder.kind} decoder, {family} reads parseq decoders only",
            "Pre-train with --set decoder.kind=parseq",
        )
    # A fine-tuning run holds the decoder among its parts.
    prefix = "decoder." if run.kind == "finetune" else ""
    weights = {
        name.removeprefix(prefix): value for name, value in finite_weights(run).items() if name.startswith(prefix)
    }
    decoder.load_state_dict(weights)
    tensors = renamed(decoder, family)
    header = {"format": "pt", "charset": run.charset.text, "heads": str(decoder.shape.heads), **checksummed.METADATA}
    with atomic_path(out) as temporary:
        save_tensors(tensors, temporary, header)
        checksummed.checksum(temporary)
    return len(tensors)


Family = Literal["parseq", "openocr"]

_LAYER_PARTS = {
    "norm_query": "norm_q",
    "norm_content": "norm_c",
    "norm_cross": "norm1",
    "norm_feed_forward": "norm2",
    "feed_forward.0": "linear1",
    "feed_forward.3": "linear2",
    "self_attention.out": "self_attn.out_proj",
    "cross_attention.out": "cross_attn.out_proj",
}
_ATTENTIONS = {"self_attention": "self_attn", "cross_attention": "cross_attn"}


def renamed(decoder: ParseqDecoder, family: Family) -> dict[str, Tensor]:
    """Return the decoder's weights, their shapes unchanged, under the names of PARSeq or OpenOCR.

    The layers compute the same; only the names and the packing differ: PyTorch's ``MultiheadAttention`` keeps queries,
    keys and values in one matrix. Class 0 is the end in all three, begin and padding come last. Names as in
    ``baudm/parseq`` (``strhub/models/parseq/model.py``) and ``Topdu/OpenOCR``
    (``openrec/modeling/decoders/parseq_decoder.py``, where the recogniser's attribute ``decoder`` holds the module).

    Raises:
        UserError: the decoder is not as wide as the memory it reads, which those projects take for granted.
    """
    shape = decoder.shape
    if shape.dim != shape.memory_dim:
        raise UserError(
            f"the decoder is {shape.dim} wide and its memory {shape.memory_dim}; {family} needs them equal",
            f"Pre-train with --set decoder.dim={shape.memory_dim}",
        )
    own = decoder.state_dict()
    tensors = {
        "text_embed.embedding.weight": own["embedding.weight"],
        "pos_queries": own["positions"][None],
        "head.weight": own["head.weight"],
        "head.bias": own["head.bias"],
        "decoder.norm.weight": own["norm.weight"],
        "decoder.norm.bias": own["norm.bias"],
    }
    for index in range(shape.layers):
        for kind in ("weight", "bias"):
            source, target = f"layers.{index}.", f"decoder.layers.{index}."
            for name, other in _LAYER_PARTS.items():
                tensors[f"{target}{other}.{kind}"] = own[f"{source}{name}.{kind}"]
            for name, other in _ATTENTIONS.items():
                packed = torch.cat([own[f"{source}{name}.{part}.{kind}"] for part in ("query", "key_value")])
                tensors[f"{target}{other}.in_proj_{kind}"] = packed
    prefix = "decoder." if family == "openocr" else ""
    return {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}
