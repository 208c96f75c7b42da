"""A recogniser of Chinese number plates from rendered plates alone: labels, crops, training, score.

    apt-get install fonts-noto-cjk fonts-wqy-zenhei fonts-wqy-microhei fonts-dejavu fonts-roboto fonts-open-sans
    python examples/number_plates.py plates

Whatever is in the folder already is kept, so the same command resumes it. The model ends in
``plates/run``; ``dptr read plates/run photo.jpg`` reads crops of plates. Duration and score: docs/howto.md.

Plates are blue (7 characters), green (new energy, 8), yellow, white and black, in the measures of GA 36; characters of
any font are stretched to the plate's cells. Then come what photographs have: tilt, dirt, screws, light from one side,
night, glare, motion, a sensor's noise, JPEG, and few pixels. The scores are of plates and fonts never trained on.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from dptr.cache.crops.dataset import write_word_images
from dptr.cache.errors import UserError, run_script
from dptr.cache.progress import progress
from dptr.pipeline.rendering.fonts import Font, find_fonts

PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # no I, no O
DIGITS = "0123456789"
LAST = "学警港澳领"
CHARSET = PROVINCES + LETTERS + DIGITS + LAST
#: Families by what they write: learnt from, and kept for the test.
SEEN = {
    "Latin": ("DejaVu Sans Condensed", "DejaVu Sans", "Roboto", "Roboto Condensed", "Lato", "Arimo", "Carlito"),
    "Han": ("Noto Sans CJK JP", "WenQuanYi Zen Hei"),
}
UNSEEN = {"Latin": ("Open Sans", "Cantarell", "Liberation Sans"), "Han": ("WenQuanYi Micro Hei",)}
#: Kind -> share, ground, ink: red, green, blue of a new plate in daylight.
KINDS = {
    "blue": (0.45, (20, 70, 175), (240, 240, 240)),
    "green": (0.25, (60, 190, 110), (20, 20, 20)),
    "yellow": (0.15, (240, 180, 30), (20, 20, 20)),
    "white": (0.08, (235, 235, 230), (20, 20, 20)),
    "black": (0.07, (25, 25, 30), (235, 235, 235)),
}
#: Pixels a millimetre while a plate is painted, and its height in millimetres.
SCALE, HEIGHT = 0.5, 140
#: The bundled recogniser reads letters and digits; it lacks the 36 Chinese characters.
RECIPE = (
    "finetune --recipe reader --from bundled --set finetune.augmentation=0 --set finetune.batch_size=32 "
    "--set finetune.learning_rate=1e-3 --set finetune.ema_decay=0.98 --set finetune.validate_every=200 "
    "--set finetune.checkpoint_every=100 --set finetune.workers=0"
)
Colour = tuple[int, int, int]


def main() -> None:
    """Make what is missing, then train and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--crops", type=int, default=12_000, help="rendered for training")
    parser.add_argument("--steps", type=int, default=800)
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "charset.txt").write_text(CHARSET, encoding="utf-8")
    render(out / "train.parquet", options.crops, SEEN, seed=0)
    render(out / "validation.parquet", 400, SEEN, seed=1)
    render(out / "test.parquet", 1_000, UNSEEN, seed=2)
    render(out / "test_94x24.parquet", 1_000, UNSEEN, seed=3, pixels=(94, 24))
    data = [str(out / "train.parquet"), "--validation", str(out / "validation.parquet")]
    settings = ["--charset", str(out / "charset.txt"), "--steps", str(options.steps), "-o", str(out / "run")]
    dptr(*RECIPE.split(), *settings, *data)
    for name in ("test", "test_94x24"):
        print(score(out / "run", out / f"{name}.parquet"))


def dptr(*arguments: str) -> str:
    """Run a command of dptr's and return what it printed; its progress is shown as ever."""
    command = [sys.executable, "-m", "dptr", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def score(run: Path, crops: Path) -> str:
    """Return the share of plates read without a mistake, with the interval that holds it in 95 of 100 such tests."""
    results = json.loads(dptr("evaluate", str(run), str(crops), "--json", "--quiet").splitlines()[-1])
    (found,) = results["sets"].values()
    found = found["as_written"]
    low, high = found["accuracy_interval"]
    return f"{crops.stem}: {found['accuracy']:.1%} of {found['words']} plates (95 % interval {low:.1%} to {high:.1%})"


def render(
    out: Path, count: int, families: Mapping[str, Sequence[str]], seed: int, pixels: tuple[int, int] | None = None
) -> None:
    """Write ``count`` labelled crops, unless an earlier run did; plates of even and odd seeds have other labels."""
    if out.exists():
        return
    latin, han = (fonts_of(families[script], sample) for script, sample in (("Latin", "A0"), ("Han", PROVINCES + LAST)))
    with write_word_images(out) as writer, progress(f"rendering {out.stem}", count, "crops") as bar:
        for index in range(count):
            rng = np.random.default_rng((seed, index))
            kind = str(rng.choice(list(KINDS), p=[share for share, _, _ in KINDS.values()]))
            text = label(kind, rng, held_out=seed > 0)
            fonts = latin[int(rng.integers(len(latin)))], han[int(rng.integers(len(han)))]
            stream = io.BytesIO()
            image = photograph(paint(text, kind, fonts, rng), rng, pixels)
            image.save(stream, "JPEG", quality=int(rng.integers(50, 95)))
            writer.write(stream.getvalue(), text)
            bar.advance(1)


def fonts_of(families: Sequence[str], sample: str) -> list[Font]:
    """Return the upright fonts of some families.

    Raises:
        UserError: none is installed.
    """
    fonts = [font for font in find_fonts(language="zh-Hans").fonts if font.family in families and font.covers(sample)]
    fonts = [font for font in fonts if not {"italic", "oblique", "thin", "light"} & set(font.names[1].lower().split())]
    if not fonts:
        raise UserError(f"none of the fonts {', '.join(families)} is installed", "Install the packages named above")
    return fonts


def label(kind: str, rng: np.random.Generator, held_out: bool) -> str:
    """Draw a number; the sum of a held-out one's characters is divisible by ten, that of others is not."""
    while True:
        rest = [
            str(rng.choice(list(LETTERS))) if rng.random() < 0.25 else str(rng.choice(list(DIGITS))) for _ in "12345"
        ]
        if kind == "green":
            small = rng.random() < 0.8
            energy = str(rng.choice(list("DFABCEGHJK"))) if small else str(rng.choice(list("DF")))
            numbers = [str(rng.choice(list(DIGITS))) for _ in "1234"]
            rest = [energy, rest[0], *numbers] if small else [str(rng.choice(list(DIGITS))), *numbers, energy]
        special = {"white": "警", "yellow": "学", "black": "港澳领"}.get(kind)
        if special and rng.random() < (0.4 if kind == "yellow" else 0.7):
            rest[-1] = str(rng.choice(list(special)))
        text = "".join([str(rng.choice(list(PROVINCES))), str(rng.choice(list(LETTERS))), *rest])
        if (sum(map(ord, text)) % 10 == 0) == held_out:
            return text


def paint(text: str, kind: str, fonts: tuple[Font, Font], rng: np.random.Generator) -> Image.Image:
    """Paint a plate as it leaves the works, in front of what a car is there: mode RGB."""
    _, ground, ink = KINDS[kind]
    wide = 480 if len(text) == 8 else 440
    size = round(wide * SCALE), round(HEIGHT * SCALE)
    plate = Image.new("RGB", size, _near(ground, rng, 35))
    if kind == "green":
        fade = Image.linear_gradient("L").resize(size)
        plate = Image.composite(plate, Image.new("RGB", size, _near((225, 240, 230), rng, 15)), fade)
    colour = _near(ink, rng, 25)
    draw = ImageDraw.Draw(plate)
    if kind != "green":
        draw.rounded_rectangle((2, 2, size[0] - 3, size[1] - 3), 4, outline=colour, width=1)
    letters = Image.new("L", size)
    for character, left in zip(text, _lefts(len(text)), strict=True):
        glyph = _glyph(character, fonts[character in PROVINCES + LAST])
        room = (round((43 if len(text) == 8 else 45) * SCALE), round(90 * SCALE))
        natural = round(glyph.width * room[1] / glyph.height)
        width = room[0] if natural > 0.6 * room[0] else max(natural, 3)
        cell = glyph.resize((width, room[1]), Image.Resampling.BILINEAR)
        letters.paste(cell, (round(left * SCALE) + (room[0] - width) // 2, round(25 * SCALE)))
    if len(text) == 7:
        x, y = 134 * SCALE, 70 * SCALE
        ImageDraw.Draw(letters).ellipse((x - 3, y - 3, x + 2, y + 2), 255)
    plate.paste(_near((20, 20, 20), rng, 20), mask=ImageChops.offset(letters, 1, 1).point(lambda level: level // 3))
    plate.paste(colour, mask=letters)
    if text[-1] == "警":
        left = round(_lefts(7)[-1] * SCALE) - 2
        plate.paste(_near((200, 30, 30), rng, 20), (left, 0), letters.crop((left, 0, *size)))
    for x in (0.22, 0.78):
        for y in (0.09, 0.91):
            if rng.random() < 0.5:
                place = (x * size[0], y * size[1])
                draw.ellipse((place[0] - 3, place[1] - 3, place[0] + 3, place[1] + 3), _near((130, 130, 130), rng, 60))
    return _with_dirt(plate, rng)


def _lefts(count: int) -> list[float]:
    """Return where the characters' cells begin, in millimetres."""
    if count == 7:
        return [15.5, 72.5, *(151.5 + 57 * place for place in range(5))]
    return [15.5, 69.5, *(154.5 + 52 * place for place in range(6))]


def _glyph(character: str, font: Font) -> Image.Image:
    mask = font.at(64, shaped=False).getmask(character)
    image = Image.frombytes("L", mask.size, bytes(mask))
    return image.crop(image.getbbox())


def _near(colour: Colour, rng: np.random.Generator, spread: int) -> Colour:
    red, green, blue = np.clip(np.array(colour) + rng.integers(-spread, spread + 1, 3), 0, 255).tolist()
    return red, green, blue


def _with_dirt(plate: Image.Image, rng: np.random.Generator) -> Image.Image:
    if rng.random() < 0.6:
        return plate
    cloud = Image.fromarray(rng.integers(0, 256, (4, 10), np.uint8)).resize(plate.size, Image.Resampling.BICUBIC)
    least = int(rng.integers(130, 230))
    mud = cloud.point(lambda level: max(0, min(200, (level - least) * 4)))
    return Image.composite(Image.new("RGB", plate.size, _near((110, 95, 75), rng, 40)), plate, mud)


def photograph(plate: Image.Image, rng: np.random.Generator, pixels: tuple[int, int] | None) -> Image.Image:
    """Take a picture of a plate on a car and cut round it as a detector does, ``pixels`` wide and high if given."""
    width, height = plate.size
    margin = height // 2
    around = np.clip(rng.integers(0, 200) + rng.integers(-40, 41, (3, 5, 3)), 0, 255).astype(np.uint8)
    scene = Image.fromarray(around).resize((width + 2 * margin, height + 2 * margin), Image.Resampling.BICUBIC)
    scene.paste(plate, (margin, margin))
    corners = np.array([[0, 0], [0, height], [width, height], [width, 0]]) + margin
    tilt = rng.uniform(-1, 1, 2) * rng.random() * (0.22 * height, 0.3 * height)
    loose = rng.uniform(-0.02, 0.16, 2) * height
    outwards = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]])
    shear = np.array([[1, -1], [-1, -1], [-1, 1], [1, 1]]) * tilt
    source = corners + outwards * loose + shear + rng.uniform(-0.04, 0.04, (4, 2)) * height
    image = scene.transform((width, height), Image.Transform.QUAD, source.ravel().tolist(), Image.Resampling.BILINEAR)
    return _through_a_camera(_lit(image, rng), rng, pixels)


def _lit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Light from one side, night, glare of the sun or of headlights."""
    levels: NDArray[np.floating] = np.asarray(image, np.float32)
    corners = Image.fromarray((255 * rng.uniform(0.45, 1, (2, 2))).astype(np.uint8)).resize(image.size)
    levels = levels * (np.asarray(corners, np.float32)[..., None] / 255)
    if rng.random() < 0.25:
        levels = levels * rng.uniform(0.25, 0.6) * rng.uniform(0.8, 1.2, 3)
    if rng.random() < 0.25:
        levels = levels + _glare(image.size, rng)[..., None] * rng.uniform(50, 170)
    middle = levels.mean()
    levels = middle + (levels - middle) * rng.uniform(0.55, 1.3) + rng.uniform(-15, 25)
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def _glare(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a bright spot: (height, width), 1 in its middle."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]].astype(np.float32)
    place, reach = rng.uniform((0, 0), size), rng.uniform(0.3, 1.2) * size[1]
    spot: NDArray[np.float32] = np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * reach**2)).astype(np.float32)
    return spot


def _through_a_camera(image: Image.Image, rng: np.random.Generator, pixels: tuple[int, int] | None) -> Image.Image:
    blur = rng.random() ** 2 * 2
    along = rng.random() ** 3 * 4
    image = image.filter(ImageFilter.BoxBlur((blur + along, blur)))
    high = int(rng.integers(16, 64))
    size = pixels or (round(high * rng.uniform(2.6, 3.9)), high)
    levels = np.asarray(image.resize(size, Image.Resampling.BOX), np.float32)
    levels = levels + rng.standard_normal(levels.shape, np.float32) * rng.uniform(0, 8)
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    run_script(main)
