"""Scale a recogniser's logits so that its confidence is the share of predictions that are right.

    python examples/reader/calibrate.py english.safetensors --data real/*-validation.lmdb -o calibrated.safetensors

One temperature divides all logits (Guo et al., ICML 2017). It is chosen by the expected calibration error on crops that
training never saw, in the 36 characters and with the file's words, and is multiplied into the decoder's last layer.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dptr.cache.crops.dataset import WordImages
from dptr.cache.errors import run_script
from dptr.cache.text.charset import Charset
from dptr.trainer.evaluate import read_word_images
from dptr.trainer.metrics import calibration_error, to_ascii
from dptr.trainer.model.model_file import ModelFile, save_model
from dptr.trainer.read import load

TEMPERATURES = (0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 1.75, 2.0)
_HEAD = ("decoder.head.weight", "decoder.head.bias")
_CHARSET = Charset.named("36")


@dataclass(frozen=True)
class Scaled(ModelFile):
    """A model file whose logits are divided by ``temperature``."""

    temperature: float = 1.0

    def weights(self) -> dict[str, Tensor]:
        """Return all tensors by name, the last layer's divided."""
        weights = super().weights()
        return {name: tensor / self.temperature if name in _HEAD else tensor for name, tensor in weights.items()}


def main() -> None:
    """Parse arguments, choose the temperature, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="what `dptr export --to safetensors` wrote")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="labelled crops of any form")
    parser.add_argument("-o", "--out", type=Path, required=True)
    arguments = parser.parse_args()
    file = ModelFile.open(arguments.model)
    sets = [WordImages.open_as_written([path]) for path in arguments.data]
    errors = {temperature: error_at(arguments.model, temperature, sets) for temperature in TEMPERATURES}
    for temperature, error in errors.items():
        print(f"temperature {temperature:g}: expected calibration error {error:.4f}")
    best = min(errors, key=lambda temperature: errors[temperature])
    scaled = Scaled(file.path, file.kind, file.recipe, file.charset, file.memory_dim, best)
    save_model(scaled, arguments.out, half=True, words=file.lexicon())
    print(f"temperature {best:g} in {arguments.out}")


def error_at(path: Path, temperature: float, sets: Sequence[WordImages]) -> float:
    """Return the expected calibration error at a temperature, mean over the sets."""
    recognizer = load(path).recognizer
    with torch.no_grad():
        for parameter in recognizer.decoder.head.parameters():  # type: ignore[union-attr]
            parameter.div_(temperature)
    errors = []
    for images in sets:
        read = read_word_images(recognizer, images, torch.device("cpu"))
        pairs = [
            (_folded(ground_truth), prediction)
            for ground_truth, prediction in zip(read.ground_truths, read.predictions, strict=True)
        ]
        counted = [
            (ground_truth == _folded(found.text), found.confidence) for ground_truth, found in pairs if ground_truth
        ]
        right, confidences = zip(*counted, strict=True)
        errors.append(calibration_error(confidences, right))
    return sum(errors) / len(errors)


def _folded(text: str) -> str:
    return _CHARSET.project(to_ascii(text))


if __name__ == "__main__":
    run_script(main)
