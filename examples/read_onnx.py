"""Read word images with an exported model and nothing but onnxruntime, NumPy and Pillow.

dptr export RUN --to onnx -o model.onnx
python examples/read_onnx.py model.onnx sign.png shop.jpg

Smallest size: ONNX IMAGE
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image


def main(model: str, *paths: str) -> None:
    """Print path, text and confidence of each picture."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    described = session.get_modelmeta().custom_metadata_map
    characters = json.loads(described["charset"])
    size = (int(described["image_width"]), int(described["image_height"]))
    pictures = [Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC) for path in paths]
    images = np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])
    ids, confidences = session.run(None, {"images": images})
    for path, row, scores in zip(paths, ids, confidences, strict=True):
        ends = np.flatnonzero(row == 0)
        length = int(ends[0]) if len(ends) else len(row)
        text = "".join(characters[index - 1] for index in row[:length])
        print(f"{path}\t{text}\t{scores[: length + 1].prod():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
