"""Read crops with RapidOCR's recogniser alone, in whatever Python has it; `peers.py` starts it.

`rapidocr-onnxruntime` brings PP-OCRv4, `rapidocr` with `onnxruntime` PP-OCRv6 small; where both are, the latter reads.

It needs nothing of dptr. Crops come as the path of an .npz of RGB arrays called 0, 1, 2 …; one JSON object goes out,
with `texts`, `milliseconds` (processor time a crop, one thread, pixels to text), `batched` (the same where it is given
all crops and makes its batches itself) and `megabytes` (of the model file).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

Read = Callable[[Sequence[Any]], Sequence[str]]


def version_6() -> tuple[Read, Path]:
    """Return what reads BGR crops with PP-OCRv6 small, and its model file."""
    import rapidocr
    from rapidocr.ch_ppocr_rec import TextRecInput

    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    recognise = rapidocr.RapidOCR(params={**threads, "Global.log_level": "error"})._load_rec_model()
    (model,) = Path(rapidocr.__file__).parent.glob("models/*_rec_*.onnx")
    return lambda crops: recognise(TextRecInput(img=list(crops), return_word_box=False)).txts, model


def version_4() -> tuple[Read, Path]:
    """Return what reads BGR crops with PP-OCRv4, and its model file."""
    import rapidocr_onnxruntime

    recognise = rapidocr_onnxruntime.RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1).text_rec
    (model,) = Path(rapidocr_onnxruntime.__file__).parent.glob("models/*_rec_*.onnx")
    return lambda crops: [text for text, _ in recognise(list(crops))[0]], model


def main(path: str) -> None:
    """Print the predictions of the crops at ``path``."""
    cv2.setNumThreads(1)
    try:
        read, model = version_6()
    except ModuleNotFoundError:
        read, model = version_4()
    with np.load(path) as arrays:
        crops = [np.ascontiguousarray(arrays[str(number)][:, :, ::-1]) for number in range(len(arrays.files))]
    read(crops[:1])  # the first reading also allocates
    started = time.process_time()
    texts = [text for crop in crops for text in read([crop])]
    between = time.process_time()
    read(crops)
    took = {"milliseconds": between - started, "batched": time.process_time() - between}
    figures = {name: seconds / len(crops) * 1000 for name, seconds in took.items()}
    print(json.dumps({"texts": texts, **figures, "megabytes": model.stat().st_size / 1e6}))


if __name__ == "__main__":
    main(sys.argv[1])
