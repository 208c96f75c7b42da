"""Draw rendered crops of each style with a recogniser's predictions, as in the README and the gallery.

python examples/draw_readings.py docs/readings.png [RUN]

Smallest size: PICTURE
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
from dptr.pipeline.rendering.demo_data import packaged_photos
from dptr.pipeline.rendering.fonts import packaged_fonts

LABELS = {
    "street": ["BAKERY", "Exit 24", "Market St", "Barber", "NO PARKING"],
    "curved": ["COFFEE", "Espresso", "ROYAL", "Garden", "Juice"],
    "plate": ["KXT 4821", "AB12 CDE", "7HGR529", "QZ 883 LM", "M-RK 2093"],
    "receipt": ["TOTAL 24.90", "VISA ****4417", "2 x Espresso", "14/03/2026 18:42", "Change 5.10"],
    "document": ["Invoice No. 20391", "Date of birth", "Account number", "see page 112", "Signature"],
    "hard": ["harbour", "Lighthouse", "orchestra", "Windmill", "platform"],
}
WIDTH, HEIGHT, TEXT, MARGIN, TITLE = 190, 46, 24, 10, 96
PAPER, INK, QUIET, WRONG = "#ffffff", "#1c2530", "#56626f", "#b3263a"


def main() -> None:
    """Parse, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="PNG file to write")
    parser.add_argument("run", nargs="?", help="a recogniser instead of the bundled one")
    arguments = parser.parse_args()
    draw(arguments.out, arguments.run)


def draw(out: Path, run: str | None) -> None:
    """Render the labels of each style, read them, and draw crops and predictions; errors of 36 characters are red."""
    reader = dptr.load(run) if run else dptr.load()
    plain = next(font for font in packaged_fonts().fonts if font.names == ("Roboto", "Regular")).at(16)
    columns = max(map(len, LABELS.values()))
    page = Image.new("RGB", (TITLE + columns * WIDTH, len(LABELS) * (HEIGHT + TEXT + MARGIN)), PAPER)
    canvas = ImageDraw.Draw(page)
    for number, (style, labels) in enumerate(LABELS.items()):
        top = number * (HEIGHT + TEXT + MARGIN) + 4
        canvas.text((6, top + HEIGHT // 2 - 10), style, QUIET, plain)
        crops = rendered(style, labels)
        for column, (crop, label, prediction) in enumerate(zip(crops, labels, reader.read(crops), strict=True)):
            _draw_crop(page, crop, (TITLE + column * WIDTH, top))
            colour = INK if _of_36(prediction.text) == _of_36(label) else WRONG
            canvas.text((TITLE + column * WIDTH, top + HEIGHT + 2), prediction.text, colour, plain)
    page.quantize(192).save(out, optimize=True)


def rendered(style: str, labels: list[str]) -> list[Image.Image]:
    """Return one crop for each label, with fonts and photos of the ``demo`` extra: the same on every machine."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, files in (("fonts", [font.path for font in packaged_fonts().fonts]), ("photos", packaged_photos())):
            (place / name).mkdir()
            for file in files:
                (place / name / file.name).symlink_to(file)
        (place / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "dptr", "render-words", "labels.txt", "-o", "crops", "--unit", "line"]
        options = ["--style", style, "--fonts", "fonts", "--photos", "photos", "--quiet"]
        subprocess.run([*command, *options], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        lines = (place / "crops" / "labels.tsv").read_text(encoding="utf-8").splitlines()
        files_of = {label: name for name, label in (line.split("\t") for line in lines)}
        return [Image.open(place / "crops" / files_of[label]).convert("RGB") for label in labels]


def _of_36(text: str) -> str:
    """Return letters and digits without case, as the 36-character protocol compares them."""
    return "".join(character for character in text.lower() if character.isascii() and character.isalnum())


def _draw_crop(page: Image.Image, crop: Image.Image, corner: tuple[int, int]) -> None:
    scale = min((WIDTH - 12) / crop.width, HEIGHT / crop.height)
    crop = crop.resize((round(crop.width * scale), round(crop.height * scale)), Image.Resampling.BICUBIC)
    page.paste(crop, (corner[0], corner[1] + (HEIGHT - crop.height) // 2))


if __name__ == "__main__":
    run_script(main)
