"""Read crops with RapidOCR's recogniser alone, in whatever Python has `rapidocr-onnxruntime`; `peers.py` starts it.

It needs nothing of dptr. Crops come as the path of an .npz of RGB arrays called 0, 1, 2 …; one JSON object goes out,
with `texts`, `milliseconds` (processor time a crop, one thread, pixels to text), `batched` (the same where it is given
all crops and makes its batches itself) and `megabytes` (of the model file).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import rapidocr_onnxruntime


def main(path: str) -> None:
    """Print the predictions of the crops at ``path``."""
    cv2.setNumThreads(1)
    engine = rapidocr_onnxruntime.RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)
    (model,) = Path(rapidocr_onnxruntime.__file__).parent.glob("models/*_rec_*.onnx")
    with np.load(path) as arrays:
        crops = [np.ascontiguousarray(arrays[str(number)][:, :, ::-1]) for number in range(len(arrays.files))]
    engine.text_rec([crops[0]])  # the first reading also allocates
    started = time.process_time()
    texts = [engine.text_rec([crop])[0][0][0] for crop in crops]
    between = time.process_time()
    engine.text_rec(crops)
    took = {"milliseconds": between - started, "batched": time.process_time() - between}
    figures = {name: seconds / len(crops) * 1000 for name, seconds in took.items()}
    print(json.dumps({"texts": texts, **figures, "megabytes": model.stat().st_size / 1e6}))


if __name__ == "__main__":
    main(sys.argv[1])
