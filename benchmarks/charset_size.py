"""What a charset of thousands costs: steps of training and readings with 94 characters and with 8,000, in one run.

pretrain   a step of the decoder on text states
finetune   a step of the recogniser on pictures
read       pictures read, labels of at most eight characters

Labels, states and pictures are made up; the sizes take turns, each figure is a median, and only ratios travel.

Smallest size: --quick --batch 2 --rounds 1 --sizes 94 300
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from itertools import chain

import numpy as np
import torch
from gpu import now
from judged import at_least, usable_device
from torch import nn

from dptr.cache.charset import Charset
from dptr.cache.errors import run_script
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Memory, Targets
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.training.recipe import Recipe, load_recipe

#: Width of the states of CLIP ViT-B/16, and how many of them a prompt has.
_DIM, _TOKENS = 512, 12
_LONGEST = 8
#: Where the made-up charsets begin: the ideographs are 20,992 in a row.
_FIRST = 0x4E00


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=at_least(1), nargs="+", default=[94, 8000])
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--batch", type=at_least(1), default=32)
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--ways", nargs="+", choices=("pretrain", "finetune", "read"), default=[])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", type=usable_device, default="cpu")
    parser.add_argument("--quick", action="store_true", help="layers of the encoder: one; only shows that it runs")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    recipe = load_recipe(arguments.recipe, ["encoder.layers=1"] if arguments.quick else [], {})
    ways = arguments.ways or ["pretrain", "finetune", "read"]
    taken: dict[tuple[str, int], list[float]] = {}
    runs = {size: runs_of(size, recipe, arguments.batch, arguments.precision, device) for size in arguments.sizes}
    for number, way in chain.from_iterable(((n, way) for way in ways) for n in range(arguments.rounds + 1)):
        for size in arguments.sizes:
            started = now(device)
            runs[size][way]()
            if number > 0:
                taken.setdefault((way, size), []).append(now(device) - started)
    print(f"recipe {arguments.recipe}, batch {arguments.batch}, {arguments.precision}, {arguments.device}, ", end="")
    print(f"{torch.get_num_threads()} threads; milliseconds\n")
    print(f"{'':10}" + "".join(f"{size:>10,}" for size in arguments.sizes) + f"{'to first':>10}")
    for way in ways:
        medians = [1000 * statistics.median(taken[way, size]) for size in arguments.sizes]
        print(f"{way:10}" + "".join(f"{value:10.1f}" for value in medians) + f"{medians[-1] / medians[0]:10.2f}")


def runs_of(
    size: int, recipe: Recipe, batch: int, precision: str, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Return what to time with a charset of ``size`` characters, by its name."""
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    charset = Charset("".join(map(chr, range(_FIRST, _FIRST + size))))
    labels = [
        "".join(charset.characters[index] for index in generator.integers(0, size, length))
        for length in generator.integers(2, _LONGEST + 1, batch)
    ]
    recognizer = Recognizer(recipe, charset, _DIM).to(device)
    decoder = build_decoder(recipe.decoder, size, _DIM, recipe.memory).to(device)
    reader = Recognizer(recipe.replace("decoder", max_label_length=_LONGEST), charset, _DIM).to(device).eval()
    targets = Targets.of(labels, charset).to(device)
    memory = Memory(torch.randn(batch, max(_TOKENS, 2 * _LONGEST), _DIM, device=device))
    height, width = recognizer.image_size
    pixels = generator.integers(0, 256, (batch, 3, height, width), np.uint8)
    images = torch.from_numpy(pixels).to(device)
    half = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    def step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            with half:
                found = loss()
            found.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return run

    def read() -> object:
        with half:
            return reader.read(images)

    return {
        "pretrain": step(decoder, lambda: decoder.loss(memory, targets)),
        "finetune": step(recognizer, lambda: recognizer.loss(images, targets)),
        "read": read,
    }


if __name__ == "__main__":
    run_script(main)
