"""Read word images with an exported model and nothing but onnxruntime, NumPy, Pillow and python-bidi.

dptr export RUN --to onnx -o model.onnx
python examples/read_onnx.py model.onnx sign.png shop.jpg

Smallest size: ONNX IMAGE
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from bidi import get_display
from PIL import Image


def main() -> None:
    """Parse, read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", nargs="+")
    arguments = parser.parse_args()
    try:
        read(arguments.model.read_bytes(), arguments.pictures)
    except OSError as error:
        parser.error(str(error))


def read(model: bytes, paths: list[str]) -> None:
    """Print path, text and confidence of each picture."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    described = session.get_modelmeta().custom_metadata_map
    characters = json.loads(described["charset"])
    height = int(described["image_height"])
    widths = [int(width) for width in described["image_widths"].split(",")]
    for path in paths:
        picture = Image.open(path).convert("RGB")
        # The wider a word is, the less it is stretched: its letters need columns either way.
        wanted = height * (2.25 + 0.75 * picture.width / picture.height)
        width = min(widths, key=lambda width: abs(width - wanted))
        pixels = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        (row,), (scores,) = session.run(None, {"images": pixels[None]})
        ends = np.flatnonzero(row == 0)
        length = int(ends[0]) if len(ends) else len(row)
        text = "".join(characters[index - 1] for index in row[:length])
        if described.get("order") == "visual":
            # As it is seen, from left to right; right-to-left writing is stored and typed the other way round.
            text = get_display(text, base_dir="R")
        print(f"{path}\t{text}\t{scores[: length + 1].prod():.3f}")


if __name__ == "__main__":
    main()
