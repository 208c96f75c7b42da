"""What several benchmarks need: checked arguments, words, a CLIP of random weights, a process's memory and CPU time."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from dptr.pipeline.options import resolve_device

#: ViT-B/16's, of CLIP's two encoders.
_SIZES = {
    "text": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 12},
    "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
}


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a whole number that is no smaller, for ``type`` of an argument."""

    def number(text: str) -> int:
        try:
            found = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
        if found < least:
            raise argparse.ArgumentTypeError(f"{found} is less than {least}")
        return found

    return number


def usable_device(name: str) -> str:
    """Return the device's name if it is usable here, for ``type`` of an argument."""
    return resolve_device(name)


def save_clip(folder: Path, *large: str) -> None:
    """Save an untrained CLIP with the bundled tokenizer: random weights cost what trained ones cost.

    The encoders in ``large`` (``text``, ``vision``) have ViT-B/16's sizes, the others those of the bundled CLIP.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel

    from dptr.pipeline.clip.clip_files import BUNDLED

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copyfile(BUNDLED / name, folder / name)
    config = CLIPConfig.from_pretrained(BUNDLED)
    sizes = {f"{part}_config": _SIZES[part] for part in large}
    if "vision" in large:
        sizes["vision_config"] = {**sizes["vision_config"], "image_size": 224}
        prepared = folder / "preprocessor_config.json"
        described = json.loads(prepared.read_text(encoding="utf-8"))
        prepared.write_text(json.dumps({**described, "size": {"height": 224, "width": 224}}), encoding="utf-8")
    if large:
        config.projection_dim = 512
    for part in ("text_config", "vision_config"):
        for key, value in {**sizes.get(part, {}), "projection_dim": config.projection_dim}.items():
            setattr(getattr(config, part), key, value)
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)


def own_megabytes() -> float:
    """Return what this process holds of its own: its USS, which would be free again if it alone ended."""
    return float(psutil.Process().memory_full_info().uss) / 1e6


def megabytes_without_files() -> float:
    """Return what is left of it without the pages of mapped files, which the kernel takes back when it needs them."""
    memory = psutil.Process().memory_info()
    return float(memory.rss - memory.shared) / 1e6


def worked_seconds(process: int) -> float:
    """Return the CPU time that a process that has not been waited for has used so far (Linux)."""
    return time.clock_gettime((~process << 3) | 2)  # clock_getcpuclockid(3)


def made_up_words(count: int) -> list[str]:
    """Distinct words of two to four syllables, about as long as a dictionary's."""
    generator = np.random.default_rng(0)
    syllables = [a + b + c for a in "bcdfghlmnprstvw" for b in "aeiou" for c in ("", "n", "r", "st")]
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(generator.choice(syllables, int(generator.integers(2, 5))))] = None
    return list(words)
