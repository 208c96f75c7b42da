"""Memory of ``dptr embed-text`` over a corpus of millions of distinct words: it must not grow with the corpus.

The words are made up. The command runs as a process of its own; its resident memory is sampled every second beside the
rows that are committed. The table says what is resident beyond the model, at each million rows and at the peak.

Smallest size: --rows 500 --clip smallest
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from judged import at_least

from dptr.cache.errors import run_script

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=at_least(1), default=10_000_000)
    parser.add_argument("--clip", default="tiny", help="`tiny`, `smallest` (one layer of 32, made here), or a folder")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        measure(arguments, Path(name))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    clip = str(write_smallest(folder / "clip")) if arguments.clip == "smallest" else arguments.clip
    command = [sys.executable, "-m", "dptr", "embed-text", "--quiet", "--workspace", str(folder), "--clip", clip]
    one = folder / "one.txt"
    one.write_text("word\n")
    base = peak([*command, str(one), "-o", str(folder / "one")], folder / "one")[-1][1]
    write_words(folder / "words.txt", arguments.rows)
    started = time.monotonic()
    seen = peak([*command, str(folder / "words.txt"), "-o", str(folder / "store")], folder / "store")
    seconds = time.monotonic() - started
    print(f"{arguments.rows:,} distinct words, clip {arguments.clip}: {seconds:.0f} s")
    print(f"MB beyond a run of one word ({base:.0f} MB):")
    print(f"before the first row {max(size for rows, size in seen if rows == 0) - base:8.0f}")
    for million in range(-(-arguments.rows // 1_000_000)):
        sizes = [size for rows, size in seen if million * 1_000_000 < rows <= (million + 1) * 1_000_000]
        if sizes:
            print(f"up to {million + 1:2} million rows {max(sizes) - base:8.0f}")
    print(f"peak {max(size for _, size in seen) - base:24.0f}")


def write_words(path: Path, count: int) -> None:
    """Distinct words: the digits of a number, scattered over all of seven letters, in no order."""
    with path.open("w", encoding="ascii") as stream:
        for number in range(count):
            value, word = number * 4_294_967_291 % 26**7, ""
            for _ in range(7):
                value, digit = divmod(value, 26)
                word += LETTERS[digit]
            stream.write(word + "\n")


def write_smallest(folder: Path) -> Path:
    """A CLIP of one layer of 32, random weights and the bundled tokenizer: the rest of the command shows."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from dptr.pipeline.clip import bundled as bundled_clip

    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).write_bytes((bundled_clip.BUNDLED / name).read_bytes())
    config = CLIPConfig.from_pretrained(bundled_clip.BUNDLED)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    for part in (config.text_config, config.vision_config):
        for key, value in {**sizes, "projection_dim": 32}.items():
            setattr(part, key, value)
    config.projection_dim = 32
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    return folder


def peak(command: list[str], store: Path) -> list[tuple[int, float]]:
    """Run a command; return committed rows and resident MB, sampled every second, the highest last."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watched, samples = psutil.Process(process.pid), [(0, 0.0)]
    while process.poll() is None:
        try:
            resident = watched.memory_info().rss / 1e6
        except psutil.Error:
            break
        samples.append((committed(store), resident))
        time.sleep(1.0 if store.name == "store" else 0.05)
    if process.wait():
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return samples if store.name == "store" else [*samples, max(samples, key=lambda sample: sample[1])]


def committed(store: Path) -> int:
    """Rows of a store so far."""
    try:
        manifest = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    return sum(shard["rows"] for shard in manifest["shards"])


if __name__ == "__main__":
    run_script(main)
