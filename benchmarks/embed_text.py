"""How fast words become embeddings: dptr's encoder and command against transformers' forward, padded to 77.

All share one model of ViT-B/16's text size with random weights, which cost what trained ones cost, and the same words.
Rounds are interleaved and the best of each counts, so that a machine that is shared favours nobody; ratios travel,
rates do not.

Smallest size: WORDS --tiny --count 64 --padded 8 --rounds 1 --precision fp32
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from common import at_least, save_clip, usable_device
from gpu import peak
from torch.utils.flop_counter import FlopCounterMode

from dptr.cache.choices import Precision
from dptr.cache.errors import run_script
from dptr.cache.progress import set_quiet
from dptr.pipeline.clip.loading import Clip, load_clip
from dptr.pipeline.clip.text_encoder import TextEncoder
from dptr.pipeline.text.embed_text import EmbedTextSettings, embed_text
from dptr.pipeline.text.templates import Template

PADDED_BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", type=Path, help="a dictionary, one word a line")
    parser.add_argument("--tiny", action="store_true", help="measure the bundled model instead")
    parser.add_argument("--count", type=at_least(1), default=4096, help="words, spread over the dictionary")
    parser.add_argument("--padded", type=at_least(1), default=256, help="words that the slow way is timed on")
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--device", type=usable_device, default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], nargs="+", default=["fp32", "bf16"])
    arguments = parser.parse_args()
    set_quiet(True)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = spread(arguments.words, arguments.count)
        (folder / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        if not arguments.tiny:
            save_clip(folder / "clip", "text")
        clip = "tiny" if arguments.tiny else str(folder / "clip")
        for precision in arguments.precision:
            measure(folder, clip, words, precision, arguments)


def measure(folder: Path, name: str, words: list[str], precision: Precision, arguments: argparse.Namespace) -> None:
    clip = load_clip(name, precision, arguments.device)
    encoder = TextEncoder(clip, Template())
    prompts = [Template().prompt(word) for word in words]
    token_ids = encoder.tokenize(prompts)
    settings = EmbedTextSettings(clip=name, precision=precision, device=arguments.device)

    def command() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            summary = embed_text([str(folder / "words.txt")], Path(out) / "store", settings)
            return summary.computed / summary.seconds

    some = prompts[:: max(1, len(prompts) // arguments.padded)]
    ways: dict[str, Callable[[], float]] = {
        "transformers, padded to 77": lambda: rate(lambda: run_padded(clip, some), len(some)),
        "dptr's encoder": lambda: rate(lambda: encoder.encode(token_ids), len(token_ids)),
        "dptr embed-text, whole command": command,
    }
    rates = dict.fromkeys(ways, 0.0)
    for _ in range(arguments.rounds):
        for way, measured in ways.items():
            rates[way] = max(rates[way], measured())
    own = sum(map(len, token_ids)) / len(token_ids) - len(encoder.prefix_ids)
    print(f"{len(words)} words, {len(encoder.prefix_ids)} shared and {own:.1f} own tokens, {precision}", flush=True)
    for way, value in rates.items():
        print(f"  {way:32} {value:9.1f} words/s {value / next(iter(rates.values())):7.1f}", flush=True)
    reached, most = (
        flops_of(encoder, token_ids) / len(token_ids) * rates["dptr's encoder"],
        peak(clip.device, precision),
    )
    print(
        f"  the encoder reaches {reached / 1e12:.2f} TFLOP/s, {reached / most:.0%} of what products of matrices do",
        flush=True,
    )
    print(f"  largest difference of any state: {encoder.check(token_ids[:: len(token_ids) // 16]):.1e}", flush=True)


def flops_of(encoder: TextEncoder, token_ids: list[list[int]]) -> float:
    """Floating-point operations for prompts' own tokens, counted by torch for one prompt of each length."""
    shared, total = len(encoder.prefix_ids), 0.0
    counts = Counter(len(ids) - shared for ids in token_ids)
    for own, prompts in counts.items():
        with FlopCounterMode(display=False) as counter:
            encoder._forward.run(torch.zeros(1, own, dtype=torch.int64, device=encoder._clip.device))
        total += prompts * counter.get_total_flops()
    return total


@torch.inference_mode()
def run_padded(clip: Clip, prompts: list[str]) -> None:
    for first in range(0, len(prompts), PADDED_BATCH):
        batch = clip.tokenizer(prompts[first : first + PADDED_BATCH], padding="max_length", return_tensors="pt")
        clip.model.get_text_features(input_ids=batch["input_ids"].to(clip.device))


def rate(work: Callable[[], Any], items: int) -> float:
    started = time.perf_counter()
    work()
    return items / (time.perf_counter() - started)


def spread(dictionary: Path, count: int) -> list[str]:
    """Return ``count`` different words of a dictionary, evenly spread over it."""
    lines = dictionary.read_text(encoding="utf-8").split()
    words = list(dict.fromkeys(word for word in lines if word.isascii() and len(word) <= 25))
    return [words[index * len(words) // count] for index in range(min(count, len(words)))]


if __name__ == "__main__":
    run_script(main)
