"""Rendering styles: one strength per effect."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dptr.cache.errors import UserError
from dptr.pipeline.rendering.like import Look


@dataclass(frozen=True)
class RenderStyle:
    """The strongest that each effect may get; each crop draws its own amounts, and many effects spare half the crops.

    Attributes:
        contrast: least difference in luminance, of 255, between ink and background.
        rotation: in degrees; perspective, curve, tracking and outline: as shares of what the letters bear.
        photos: share of crops with a photo behind the letters, where photos are given; else it is plain or a gradient.
        shadow: cast by the letters. light: how unevenly the crop is lit.
        shrink: of the height, lost to distance. blur, noise, jpeg: damage by camera and file.
        height: least and greatest font size, in pixels per em.
        clutter: share of crops at whose borders other text of the same sign shows.
        cut: how carelessly the box was drawn: into the letters or far from them.
        gradient: how much the colour changes over the letters. exposure: too dark, too bright, or washed out.
        vertical: share of Chinese, Japanese and Korean words that are set as a column, from top to bottom.
        plate: share of crops that show a number plate, with its frame and the small text of its makers.
        arc: share set along a circle. stretch: how much wider or narrower than the font's letters.
        paper: share printed dark on light paper. faint: how unevenly ink has faded or not printed.
        dots: share printed by a dot matrix or at low resolution. relief: share embossed or carved.
        rules: share with lines or a box around the text, as in forms. motion: blur along the line.
        grey: share without colour.
        looks: of crops to imitate, which give colours, size and degradation.
    """

    contrast: float
    rotation: float
    perspective: float
    curve: float
    tracking: float
    outline: float
    photos: float
    shadow: float
    light: float
    shrink: float
    blur: float
    noise: float
    jpeg: float
    height: tuple[int, int] = (24, 44)
    clutter: float = 0.0
    cut: float = 0.0
    gradient: float = 0.0
    exposure: float = 0.0
    vertical: float = 0.0
    plate: float = 0.0
    arc: float = 0.0
    stretch: float = 0.0
    paper: float = 0.0
    faint: float = 0.0
    dots: float = 0.0
    relief: float = 0.0
    rules: float = 0.0
    motion: float = 0.0
    grey: float = 0.0
    looks: tuple[Look, ...] = ()

    @classmethod
    def of_difficulty(cls, difficulty: float) -> RenderStyle:
        """Scale every effect from none at 0 to the hardest that people still read at 1.

        Raises:
            UserError: ``difficulty`` is not between 0 and 1.
        """
        if not 0 <= difficulty <= 1:
            raise UserError(f"difficulty is {difficulty:g}", "Give a number from 0 (clean) to 1 (hard)")
        return cls(
            contrast=120 - 80 * difficulty,
            rotation=14 * difficulty,
            perspective=difficulty,
            curve=difficulty,
            tracking=difficulty,
            outline=difficulty,
            photos=difficulty,
            shadow=difficulty,
            light=difficulty,
            shrink=difficulty,
            blur=difficulty,
            noise=difficulty,
            jpeg=difficulty,
        )

    @classmethod
    def like(cls, looks: tuple[Look, ...]) -> RenderStyle:
        """Return the style of crops that were measured: their colours, sizes and damage, and no other effects."""
        slopes = [abs(look.slope) for look in looks]
        return replace(
            cls.of_difficulty(0.2), rotation=float(np.quantile(slopes, 0.9)) + 1, outline=0.0, shadow=0.0, looks=looks
        )

    @classmethod
    def named(cls, name: str) -> RenderStyle:
        """Return the style of one of the names in ``STYLES``, or of a difficulty given as a number.

        Raises:
            UserError: it is neither.
        """
        if name in STYLES:
            return STYLES[name]
        try:
            return cls.of_difficulty(float(name))
        except ValueError:
            raise UserError(f"no style called {name!r}", f"Use {', '.join(STYLES)}, or a number from 0 to 1") from None


CLEAN = RenderStyle.of_difficulty(0.15)
NATURAL = RenderStyle.of_difficulty(0.6)
HARD = RenderStyle.of_difficulty(1.0)
#: Words cropped from incidental photos: mostly signs, often with a plain background, but small, dark, blurred, and with
#: other text around them.
STREET = replace(
    HARD, contrast=50, rotation=32, perspective=0.8, curve=0.5, tracking=0.6, outline=0.5, photos=0.35, shadow=0.7,
    noise=0.35, clutter=0.5, cut=1.0, gradient=0.7, exposure=1.0,
)  # fmt: skip
#: Lettering of logos, badges, labels and shop fronts: along circles, in perspective, carved, with outlines and shadows.
CURVED = replace(
    STREET, rotation=20, perspective=1.0, curve=0.9, arc=0.75, outline=0.8, clutter=0.25, cut=0.7, exposure=0.6,
    relief=0.15, stretch=0.3,
)  # fmt: skip
#: Scanned and photographed receipts: thermal and dot-matrix print, faint, small, with the lines above and below.
RECEIPT = replace(
    HARD, contrast=35, rotation=3, perspective=0.12, curve=0.05, tracking=0.35, outline=0.0, photos=0.0, shadow=0.0,
    light=0.35, shrink=1.0, blur=0.8, noise=0.15, jpeg=0.8, clutter=0.35, cut=0.9, exposure=0.5, paper=1.0, faint=0.6,
    dots=0.3, stretch=0.35, grey=0.6,
)  # fmt: skip
#: Letters, forms, labels, screens and packages, by camera: lines and boxes, shade and perspective.
DOCUMENT = replace(
    HARD, contrast=55, rotation=6, perspective=0.35, curve=0.15, tracking=0.4, outline=0.1, photos=0.1, shadow=0.15,
    light=0.8, shrink=1.0, blur=0.9, noise=0.3, jpeg=0.9, clutter=0.35, cut=0.8, exposure=0.6, paper=0.7, faint=0.35,
    dots=0.08, rules=0.3, relief=0.08, stretch=0.3, motion=0.3, grey=0.2,
)  # fmt: skip
#: Number plates of many layouts, by day and by night, seen from aside, moving.
PLATE = replace(
    STREET, contrast=65, rotation=10, perspective=0.6, curve=0.1, tracking=0.0, outline=0.0, photos=0.5, shadow=0.1,
    light=1.0, shrink=1.0, blur=1.0, noise=0.6, jpeg=0.7, clutter=0.0, cut=0.9, gradient=0.15, exposure=0.6, plate=1.0,
    relief=0.3, motion=0.5, faint=0.2, grey=0.6,
)  # fmt: skip
STYLES = {
    "clean": CLEAN, "natural": NATURAL, "hard": HARD, "street": STREET, "curved": CURVED, "receipt": RECEIPT,
    "document": DOCUMENT, "plate": PLATE,
}  # fmt: skip


def amount(rng: np.random.Generator, strength: float) -> float:
    """Draw how much of an effect one crop gets: none half of the time, else up to ``strength``."""
    drawn = float(rng.uniform(-1, 1))
    return max(0.0, drawn) * strength


def chance(rng: np.random.Generator, share: float) -> bool:
    """Draw whether a crop shows an effect that ``share`` of the crops show; nothing is drawn where none does."""
    return share > 0 and float(rng.random()) < share
