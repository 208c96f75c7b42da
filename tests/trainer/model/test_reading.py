"""Pictures of any shape: what lies on its side is turned, what stands is left alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from dptr.trainer.model.reading import read_pictures
from dptr.trainer.model.recognizer import Reading


@dataclass
class DarkLeft:
    """Stands in for a recogniser that is sure where the left half of an image is dark, as a word is that stands."""

    image_size: tuple[int, int] = (8, 16)
    seen: list[int] = field(default_factory=list)

    def read(self, images: Tensor) -> list[Reading]:
        self.seen.append(len(images))
        dark = 1 - images[..., :8].float().mean((1, 2, 3)) / 255
        return [Reading(f"{float(share):.1f}", float(share), []) for share in dark]


def half(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGB", size, "white")
    image.paste("black", box)
    return image


def test_a_portrait_picture_is_read_on_whichever_side_is_surest() -> None:
    recogniser = DarkLeft()
    standing = half((40, 20), (0, 0, 20, 20))
    top, bottom = half((20, 40), (0, 0, 20, 20)), half((20, 40), (0, 20, 20, 40))
    readings = read_pictures(recogniser, [top, standing, bottom])  # type: ignore[arg-type]
    assert [reading.text for reading in readings] == ["1.0", "1.0", "1.0"]
    assert recogniser.seen == [3 + 1 + 3]


def test_a_narrow_letter_is_not_turned() -> None:
    recogniser = DarkLeft()
    read_pictures(recogniser, [Image.new("RGB", (20, 23))])  # type: ignore[arg-type]
    assert recogniser.seen == [1]
    assert read_pictures(recogniser, []) == []  # type: ignore[arg-type]
