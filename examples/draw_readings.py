"""Draw rendered crops and what a recogniser reads on them, as in the README.

python examples/draw_predictions.py words.txt docs/predictions.png [RUN]

Smallest size: WORDS PICTURE
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

import dptr
from dptr.cache.errors import run_script
from dptr.pipeline.rendering.fonts import packaged_fonts

COLUMNS, ROWS = 5, 3
WIDTH, HEIGHT, TEXT = 190, 50, 26
PAPER, INK, WRONG = "#ffffff", "#1c2530", "#b3263a"


def main() -> None:
    """Parse, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", type=Path, help="a word list")
    parser.add_argument("out", type=Path, help="where to draw, as PNG")
    parser.add_argument("run", nargs="?", help="a recogniser instead of the bundled one")
    arguments = parser.parse_args()
    draw(arguments.words, arguments.out, arguments.run)


def draw(words: Path, out: Path, run: str | None) -> None:
    """Render as many words as there is room for, read them, and draw both."""
    with tempfile.TemporaryDirectory() as folder:
        fonts = Path(folder) / "fonts"
        fonts.mkdir()
        for font in packaged_fonts().fonts:  # the same on every machine
            (fonts / font.path.name).symlink_to(font.path)
        crops_folder = Path(folder) / "crops"
        rendered = [sys.executable, "-m", "dptr", "render-words", str(words), "-o", str(crops_folder), "--quiet"]
        subprocess.run([*rendered, "--count", str(COLUMNS * ROWS), "--style", "0.4", "--fonts", str(fonts)], check=True)
        lines = (crops_folder / "labels.tsv").read_text(encoding="utf-8").splitlines()
        files, labels = zip(*(line.split("\t") for line in lines), strict=True)
        crops = [Image.open(crops_folder / name).convert("RGB") for name in files]
    reader = dptr.load(run) if run else dptr.load()
    plain = next(font for font in packaged_fonts().fonts if font.names == ("Roboto", "Regular")).at(17)
    page = Image.new("RGB", (COLUMNS * WIDTH, ROWS * (HEIGHT + TEXT + 14)), PAPER)
    draw = ImageDraw.Draw(page)
    for number, (crop, label, prediction) in enumerate(zip(crops, labels, reader.read(crops), strict=True)):
        left, top = number % COLUMNS * WIDTH + 8, number // COLUMNS * (HEIGHT + TEXT + 14) + 6
        scale = min((WIDTH - 16) / crop.width, HEIGHT / crop.height)
        crop = crop.resize((round(crop.width * scale), round(crop.height * scale)), Image.Resampling.BICUBIC)
        page.paste(crop, (left, top + (HEIGHT - crop.height) // 2))
        draw.text(
            (left, top + HEIGHT + 3), prediction.text, INK if prediction.text.lower() == label.lower() else WRONG, plain
        )
    page.quantize(128).save(out, optimize=True)


if __name__ == "__main__":
    run_script(main)
