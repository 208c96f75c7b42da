"""Training images a second of the recogniser at PARSeq-small's shape, three ways side by side in one run.

plain   one reading order after another, labels padded to 27, fp32, attention as PARSeq's modules do it
fp32    dptr: all orders in one pass, labels padded to the longest of the batch
bf16    the same in bf16 autocast

The encoder (12 x 384) is the same module in all three and costs most of the step. Images are made up, words are made up
from syllables; the ways take turns, rates are medians, and only ratios travel.

Smallest size: --quick --batch 2 --rounds 1
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import torch
from common import at_least, usable_device
from gpu import now
from plain_parseq import loss_order_by_order, made_up_words, padded_targets, update

from dptr.cache.errors import run_script
from dptr.cache.text.charset import Charset
from dptr.trainer.model.decoders.base import Targets
from dptr.trainer.model.decoders.parseq import ParseqDecoder
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.recipe import Recipe

WAYS = ("plain", "fp32", "bf16")
CHARSET = Charset.named("94")


def parseq_small(quick: bool) -> Recipe:
    """PARSeq's released "small" shape: ViT 12 x 384 with patches 4x8, a decoder of one layer, six orders."""
    recipe = Recipe().replace("encoder", dim=384, heads=6, layers=1 if quick else 12)
    recipe = recipe.replace("decoder", dim=384, heads=12, layers=1, feed_forward=1536, dropout=0.1, permutations=6)
    return recipe.replace("fmu", kind="none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=at_least(1), default=16)
    parser.add_argument("--rounds", type=at_least(1), default=5)
    parser.add_argument("--device", type=usable_device, default="cpu")
    parser.add_argument("--quick", action="store_true", help="an encoder of one layer: only shows that it runs")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    model = Recognizer(parseq_small(arguments.quick), CHARSET, 384).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    words = made_up_words(arguments.batch * (arguments.rounds + 1))
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(arguments.rounds + 1):
        labels = words[number * arguments.batch : (number + 1) * arguments.batch]
        pixels = np.random.default_rng(number).integers(0, 256, (len(labels), 3, 32, 128), np.uint8)
        images = torch.from_numpy(pixels).to(device)
        for way in WAYS:
            rate = len(labels) / step_seconds(way, model, optimizer, images, labels)
            if number > 0:
                rates[way].append(rate)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"PARSeq-small, {millions:.1f} M parameters, batch {arguments.batch}, ", end="")
    print(f"{arguments.device}, {torch.get_num_threads()} threads\n\n{'':8}{'images/s':>10}{'to plain':>10}")
    medians = {way: statistics.median(values) for way, values in rates.items()}
    for way, rate in medians.items():
        print(f"{way:8}{rate:10.2f}{rate / medians['plain']:10.2f}")


def step_seconds(
    way: str, model: Recognizer, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: list[str]
) -> float:
    """Seconds of one training step."""
    decoder = model.decoder
    if not isinstance(decoder, ParseqDecoder):
        raise TypeError("the recipe's decoder is not parseq")
    started = now(images.device)
    if way == "plain":
        targets = padded_targets(labels, CHARSET).to(images.device)
        loss = loss_order_by_order(decoder, model.memory(images).tokens, targets)
    else:
        targets = Targets.of(labels, CHARSET).to(images.device)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=way == "bf16"):
            loss = model.loss(images, targets)
    update(model, optimizer, [loss])
    return now(images.device) - started


if __name__ == "__main__":
    run_script(main)
