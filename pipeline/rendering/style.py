"""How hard a rendered crop may be: one strength per effect, so that a curriculum is a list of styles."""

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
        looks: of crops that rendered ones take after; colours, size and damage are theirs then.
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
#: Words cut by hand or by a detector from photos that were not taken for their sake: signs mostly, so plain behind the
#: letters more often than not, but small, dim, blurred, and never alone.
STREET = replace(
    HARD, contrast=50, rotation=32, perspective=0.8, curve=0.5, tracking=0.6, outline=0.5, photos=0.35, shadow=0.7,
    noise=0.35, clutter=0.5, cut=1.0, gradient=0.7, exposure=1.0,
)  # fmt: skip
STYLES = {"clean": CLEAN, "natural": NATURAL, "hard": HARD, "street": STREET}


def amount(rng: np.random.Generator, strength: float) -> float:
    """Draw how much of an effect one crop gets: none half of the time, else up to ``strength``."""
    drawn = float(rng.uniform(-1, 1))
    return max(0.0, drawn) * strength
