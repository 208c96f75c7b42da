"""A recogniser as one ONNX graph: pixels in, characters out, the decoding loop inside.

The loop is unrolled: with a fixed longest label it always takes the same number of steps, so the graph needs no control
flow and every runtime can run it. A graph cannot end early; what follows a label's end is simply not read.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dptr.cache.errors import DptrError, UserError
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import atomic_path
from dptr.trainer.model.recognizer import Recognizer

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
