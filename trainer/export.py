"""Take a run elsewhere: ONNX, one safetensors file, or a decoder under PARSeq's or OpenOCR's names.

The ONNX graph takes pixels and gives characters, the decoding loop inside. The loop is unrolled: with a fixed longest
label it always takes the same number of steps, so the graph needs no control flow and every runtime can run it. A graph
cannot end early; what follows a label's end is simply not read.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dptr.cache.crops.dataset import WordImages, preprocess
from dptr.cache.errors import DptrError, UserError
from dptr.cache.file_names import SAFETENSORS, WEIGHTS_FILE
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import atomic_path
from dptr.cache.text.lexicon import Lexicon, Words, word_counts
from dptr.trainer.choices import ExportTarget
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.parseq import ParseqDecoder
from dptr.trainer.model.model_file import ModelFile, finite_weights, save_model, save_tensors
from dptr.trainer.model.reading import width_for
from dptr.trainer.model.recognizer import Recognizer, load_recognizer, require_ctc
from dptr.trainer.training.runs import Run, Trained, require_recogniser

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


def _onnx(run: Trained, out: Path, crops: WordImages | None) -> tuple[int, float]:
    require_recogniser(run)
    recognizer = load_recognizer(run)
    finite_weights(run)
    # The graph holds none, and is compared with what torch reads.
    recognizer.prefer_words(None)
    height, widths = recognizer.image_size[0], recognizer.encoder.widths
    images = {width: [*_made_up(height, width)] for width in widths}
    for row in range(0 if crops is None else len(crops)):
        picture = crops.image(row)  # type: ignore[union-attr]
        width = width_for(picture, height, widths)
        images[width].append(preprocess(picture, height, width))
    export_onnx(recognizer, out)
    try:
        apart = [largest_difference(recognizer, out, np.stack(found)) for found in images.values()]
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


TOLERANCE = 1e-3


class PredictionGraph(nn.Module):
    """The exported graph: ``images`` (batch, 3, height, width) uint8 RGB -> ``ids`` and ``confidences`` (batch, steps).

    Ids count from 0, the end; id i is the i-th unit of the charset, in the order that the metadata names. Confidences
    are probabilities.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        super().__init__()
        self.recognizer = recognizer

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Read images (batch, 3, height, width) uint8: ids int64 and confidences, both (batch, steps)."""
        logits = self.recognizer.decoder.decode(self.recognizer.memory(images))
        confidences, ids = logits.softmax(-1).max(-1)
        return ids, confidences


def export_onnx(recognizer: Recognizer, path: Path) -> None:
    """Write a recogniser as ONNX with a dynamic batch; its metadata names the charset and the image size.

    Where the encoder takes several widths the graph does, too, and the metadata lists them.

    Raises:
        UserError: the packages for it are missing.
    """
    _require_packages()
    height, width = recognizer.image_size
    widths = recognizer.encoder.widths
    example = torch.zeros((2, 3, height, width), dtype=torch.uint8)
    dynamic: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if len(widths) > 1:
        dynamic[3] = torch.export.Dim.AUTO(min=min(widths), max=max(widths))
    with _silenced(), torch.inference_mode():
        program = torch.onnx.export(
            PredictionGraph(recognizer).eval(),
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["ids", "confidences"],
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    if program is None:
        raise DptrError("the exporter of torch returned no program", "Use another version of torch")
    for node in program.model.graph.all_nodes():
        # Where torch's code lies on this machine, and at which address: no two exports would have the same bytes.
        node.metadata_props.clear()
    program.model.metadata_props.update(
        {
            "charset": json.dumps(recognizer.charset.characters),
            "order": str(recognizer.charset.order),
            "image_height": str(height),
            "image_width": str(width),
            "image_widths": ",".join(map(str, widths)),
            "resize": "bicubic, aspect ratio not kept",
            **checksummed.METADATA,
        }
    )
    with atomic_path(path) as temporary:
        program.save(temporary, external_data=False)
        checksummed.checksum(temporary)


def largest_difference(recognizer: Recognizer, path: Path, images: NDArray[np.uint8], batch_size: int = 32) -> float:
    """Read images (count, 3, height, width) with torch and with onnxruntime; return how far their scores are apart.

    Raises:
        DptrError: they read different texts, or their scores differ by more than :data:`TOLERANCE`.
    """
    _require_packages()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    recognizer = recognizer.cpu().eval()
    largest = 0.0
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        ids, confidences = session.run(None, {"images": batch})
        for row, prediction in enumerate(recognizer.read(torch.from_numpy(batch))):
            text = recognizer.charset.decode(ids[row])
            if text != prediction.text:
                raise DptrError(f"{path} reads {text!r} where torch reads {prediction.text!r} (image {start + row})")
            apart = np.abs(confidences[row, : len(text)] - np.array(prediction.character_confidences))
            largest = max(largest, float(apart.max(initial=0.0)))
    if largest > TOLERANCE:
        raise DptrError(f"{path} gives scores up to {largest:.1e} away from torch's; {TOLERANCE:.0e} is allowed")
    return largest


def _require_packages() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"ONNX export needs {error.name}", "pip install 'dptr[export]'") from error


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keep the exporter's notes to developers away from users; its errors are exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
