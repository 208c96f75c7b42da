"""Images read a second, with and without kept keys and values, side by side in one run.

Without, every step of the decoder runs over all characters read so far and makes the memory's keys and values anew, as
PARSeq's code does. The encoder, the FMU and the refinement are the same for both; the last columns leave the encoder
out. The texts are compared. Weights are random unless RUN names a fine-tuning run; random weights seldom end a word
early, so their rates are those of long words.

Smallest size: --shapes parseq-small --batch 2 --rounds 1
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from common import at_least
from plain_parseq import decode_without_cache

from dptr.cache.errors import run_script
from dptr.cache.text.charset import Charset
from dptr.trainer.model.decoders.parseq import ParseqDecoder
from dptr.trainer.model.recognizer import Recognizer, load_recognizer
from dptr.trainer.recipe import Recipe, load_recipe
from dptr.trainer.training.runs import Run

Result = TypeVar("Result")


def recipe_of(name: str) -> Recipe:
    """A bundled recipe, or PARSeq-small: ViT 12 x 384, a decoder of one layer, all image tokens as its memory."""
    if name != "parseq-small":
        return load_recipe(name)
    recipe = Recipe().replace("encoder", dim=384, heads=6, layers=12).replace("fmu", kind="none")
    return recipe.replace("decoder", dim=384, heads=12, layers=1, feed_forward=1536)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a fine-tuning run")
    parser.add_argument("--shapes", nargs="+", default=["parseq-small", "paper"], help="recipes, without RUN")
    parser.add_argument("--batch", type=at_least(1), default=32)
    parser.add_argument("--rounds", type=at_least(1), default=5)
    arguments = parser.parse_args()
    print(f"images a second, batch {arguments.batch}, {torch.get_num_threads()} threads\n")
    print(f"{'':14}{'encoding and decoding':>25}   {'decoding alone':>25}")
    columns = f"{'cached':>9}{'without':>9}{'ratio':>7}"
    print(f"{'':14}{columns}   {columns}  same text")
    torch.manual_seed(0)
    if arguments.run:
        compare(arguments.run.name, load_recognizer(Run.load(arguments.run)), arguments)
        return
    for shape in arguments.shapes:
        recipe = recipe_of(shape)
        compare(shape, Recognizer(recipe, Charset.named("94"), recipe.decoder.dim).eval(), arguments)


@torch.inference_mode()
def compare(name: str, model: Recognizer, arguments: argparse.Namespace) -> None:
    """Print one line of the table."""
    decoder = model.decoder
    if not isinstance(decoder, ParseqDecoder):
        raise TypeError("the recipe's decoder is not parseq")
    generator = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"encode": [], "cached": [], "without": []}
    same = 0
    for number in range(arguments.rounds + 1):
        images = torch.from_numpy(generator.integers(0, 256, (arguments.batch, 3, *model.image_size), np.uint8))
        memory, encoding = timed(partial(model.memory, images))
        cached, prediction = timed(partial(decoder.decode, memory))
        plain, without = timed(partial(decode_without_cache, decoder, memory))
        if number > 0:
            for key, value in zip(seconds, (encoding, prediction, without), strict=True):
                seconds[key].append(value)
            same += texts(cached, model) == texts(plain, model)
    encode, cached_time, without_time = (statistics.median(values) for values in seconds.values())
    rates = [arguments.batch / value for value in (encode + cached_time, encode + without_time)]
    alone = [arguments.batch / value for value in (cached_time, without_time)]
    print(
        f"{name[:13]:14}{rates[0]:9.1f}{rates[1]:9.1f}{rates[0] / rates[1]:7.2f}{'':3}{alone[0]:9.1f}{alone[1]:9.1f}"
        f"{alone[0] / alone[1]:7.2f}  {same} of {arguments.rounds} batches"
    )


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    started = time.perf_counter()
    result = function()
    return result, time.perf_counter() - started


def texts(logits: torch.Tensor, model: Recognizer) -> list[str]:
    return [model.charset.decode(row) for row in logits.argmax(-1).numpy()]


if __name__ == "__main__":
    run_script(main)
