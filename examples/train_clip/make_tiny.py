"""Reproduce the bundled CLIP: split words and fonts, render two sets of crops, train in two runs, easy crops first.

    python examples/train_clip/make_tiny.py /usr/share/dict/words clip_tiny/ --photos photos/

About an hour and a half on two cores. Words of ``is_held_out`` and the fonts of the ``demo`` extra are held
out, so that ``benchmarks/clip_retrieval.py`` measures on unseen words and fonts. The training fonts depend on the
machine: the model card lists those of the bundled weights. Finished crops and runs are reused, so the script resumes.

Smallest size: WORDS OUT --photos PHOTOS --scale 0.0002 --workers 1
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

from dptr.cache.errors import run_script
from dptr.pipeline.clip.clip_files import is_held_out
from dptr.pipeline.rendering.fonts import find_fonts, packaged_fonts

_WORD = re.compile(r"[A-Za-z']{2,12}")
_NUMBERS = 6000
_FIRST_STEPS, _SECOND_STEPS = 1000, 12_000
_FEWEST = 10
_ORNAMENTAL = ("Linux Biolinum Keyboard", "Linux Libertine Initials")


def main() -> None:
    """Parse, render, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", type=Path, help="a word list, such as /usr/share/dict/words")
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", type=Path, required=True, help="photos without text")
    parser.add_argument("--workers", default="2", help="processes that render")
    parser.add_argument("--scale", type=float, default=1.0, help="so much of the crops and steps, to try the script")
    arguments = parser.parse_args()
    out, photos = arguments.out, arguments.photos
    out.mkdir(parents=True, exist_ok=True)
    write_words(arguments.words, out)
    part_fonts(out)
    for name, words, fonts, count, style, seed in (
        ("easy", "train", "train", 60_000, "0.2", 1),
        ("natural", "train", "train", 160_000, "0.5", 2),
        ("unseen_easy", "unseen", "unseen", 1_000, "0.2", 3),
        ("unseen", "unseen", "unseen", 1_000, "natural", 3),
    ):
        crops = out / f"{name}.parquet"
        if not crops.exists():
            looks = ["--fonts", out / f"fonts_{fonts}", "--photos", photos, "--style", style, "--seed", seed]
            dptr(
                "render-words",
                out / f"{words}.txt",
                "-o",
                crops,
                "--count",
                scaled(count, arguments.scale),
                *looks,
                "--workers",
                arguments.workers,
            )
    train = [Path(__file__).with_name("train.py"), "--photos", photos, "--set", "workers=1"]
    first = ["--data", out / "easy.parquet", "--validation", out / "unseen_easy.parquet", "-o", out / "first"]
    first += ["--steps", scaled(_FIRST_STEPS, arguments.scale), "--set", "schedule=constant"]
    first += ["--set", "warmup_share=0.18"]
    second = ["--data", out / "natural.parquet", out / "easy.parquet", "--validation", out / "unseen.parquet"]
    second += [
        "--from",
        out / "first" / "clip",
        "--steps",
        scaled(_SECOND_STEPS, arguments.scale),
        "-o",
        out / "second",
    ]
    for asked in (first, second):
        subprocess.run([sys.executable, *map(str, [*train, *asked])], check=True)
    print(f"the CLIP: {out / 'second' / 'clip'}")


def scaled(count: int, scale: float) -> int:
    """Return a share of ``count``, and never next to nothing."""
    return max(_FEWEST, round(count * scale))


def dptr(*arguments: object) -> None:
    """Run one command and stop where it fails."""
    subprocess.run([sys.executable, "-m", "dptr", *map(str, arguments)], check=True)


def write_words(source: Path, out: Path) -> None:
    """Write the words to learn, each in three cases, with numbers among them, and those never to be seen."""
    words = source.read_text(encoding="utf-8").split("\n")
    lower = sorted({word.lower() for word in words if _WORD.fullmatch(word) and not word.endswith("'s")})
    rng = random.Random(0)
    numbers: set[str] = set()
    while len(numbers) < _NUMBERS:
        number = "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 6)))
        if not is_held_out(number):
            numbers.add(number)
    lines = [form for word in lower if not is_held_out(word) for form in (word, word.capitalize(), word.upper())]
    (out / "train.txt").write_text("\n".join([*lines, *sorted(numbers)]) + "\n", encoding="utf-8")
    (out / "unseen.txt").write_text("\n".join(filter(is_held_out, lower)) + "\n", encoding="utf-8")


def part_fonts(out: Path) -> None:
    """Copy the fonts of this machine to two folders: those of the ``demo`` extra's families, and all others."""
    unseen = tuple(sorted({font.names[0] for font in packaged_fonts().fonts}))
    fonts = find_fonts().fonts
    if all(font.names[0].startswith(unseen) for font in fonts):
        # A machine without other fonts: hold out only one family.
        unseen = unseen[:1]
    for number, font in enumerate(fonts):
        if font.index or font.names[0].startswith(_ORNAMENTAL):
            continue
        folder = out / ("fonts_unseen" if font.names[0].startswith(unseen) else "fonts_train")
        folder.mkdir(exist_ok=True)
        shutil.copyfile(font.path, folder / f"{number:03d}-{font.path.name}")


if __name__ == "__main__":
    run_script(main)
