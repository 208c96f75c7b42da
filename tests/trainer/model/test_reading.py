"""Pictures of any shape: what lies on its side is turned, what stands is left alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from PIL import Image
from torch import Tensor

from dptr.trainer.model.reading import read_pictures, width_for
from dptr.trainer.model.recognizer import Prediction


@dataclass
class DarkLeft:
    """Stands in for a recogniser that is sure where the left half of an image is dark, as a word is that stands."""

    image_size: tuple[int, int] = (8, 16)
    seen: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    encoder: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(widths=(16,)))

    def read(self, images: Tensor) -> list[Prediction]:
        self.seen.append(len(images))
        self.widths.append(images.shape[3])
        dark = 1 - images[..., :8].float().mean((1, 2, 3)) / 255
        return [Prediction(f"{float(share):.1f}", float(share), [1.0, 1.0, 1.0]) for share in dark]


def half(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGB", size, "white")
    image.paste("black", box)
    return image


def test_a_portrait_picture_is_read_on_whichever_side_is_most_confident() -> None:
    recogniser = DarkLeft()
    standing = half((40, 20), (0, 0, 20, 20))
    top, bottom = half((20, 40), (0, 0, 20, 20)), half((20, 40), (0, 20, 20, 40))
    predictions = read_pictures(recogniser, [top, standing, bottom])  # type: ignore[arg-type]
    assert [prediction.text for prediction in predictions] == ["1.0", "1.0", "1.0"]
    assert recogniser.seen == [4 + 1 + 4]


def test_a_narrow_letter_is_not_turned() -> None:
    recogniser = DarkLeft()
    read_pictures(recogniser, [Image.new("RGB", (20, 23))])  # type: ignore[arg-type]
    assert recogniser.seen == [1]
    assert read_pictures(recogniser, []) == []  # type: ignore[arg-type]


class TurnedLetter(DarkLeft):
    """Reads one character, most confidently where the picture is turned."""

    def read(self, images: Tensor) -> list[Prediction]:
        return [Prediction(prediction.text[0], prediction.confidence, [1.0]) for prediction in super().read(images)]


def test_a_single_letter_is_not_read_from_its_side() -> None:
    top = half((20, 40), (0, 0, 20, 20))
    (prediction,) = read_pictures(TurnedLetter(), [top])  # type: ignore[arg-type]
    assert prediction.confidence < 0.6  # turned, it would be 1


def test_wide_pictures_are_stretched_less_and_predictions_stay_in_order() -> None:
    recogniser = DarkLeft(encoder=SimpleNamespace(widths=(16, 32, 48)))
    wide, narrow = half((100, 10), (0, 0, 50, 10)), Image.new("RGB", (10, 10), "white")
    predictions = read_pictures(recogniser, [wide, narrow, wide])  # type: ignore[arg-type]
    assert recogniser.widths[:2] == [16, 48]
    assert recogniser.seen[:2] == [1, 2]
    assert [prediction.text for prediction in predictions] == ["1.0", "0.0", "1.0"]


class SureOfWide(DarkLeft):
    """Says the width it is given, surer the wider."""

    def read(self, images: Tensor) -> list[Prediction]:
        self.widths.append(images.shape[3])
        said = {16: ("a", 0.4), 32: ("b", 0.45), 48: ("b", 0.1), 64: ("a", 0.9)}[images.shape[3]]
        return [Prediction(*said, []) for _ in images]


def test_an_unsure_reading_is_read_in_the_neighbouring_widths_and_agreement_counts() -> None:
    recogniser = SureOfWide(encoder=SimpleNamespace(widths=(16, 32, 48, 64)))
    unsure, sure = Image.new("RGB", (24, 10)), Image.new("RGB", (100, 10))
    assert width_for(unsure, 8, (16, 32, 48, 64)) == 32
    predictions = read_pictures(recogniser, [unsure, sure])  # type: ignore[arg-type]
    # The sure one is not read again; of a, b, b the two that agree are surer together.
    assert recogniser.widths == [32, 64, 16, 48]
    assert [(prediction.text, prediction.confidence) for prediction in predictions] == [("b", 0.45), ("a", 0.9)]


def test_the_width_grows_with_the_shape_and_is_one_of_those_the_encoder_takes() -> None:
    shapes = [Image.new("RGB", (width, 20)) for width in (10, 20, 40, 70, 100, 400)]
    widths = [width_for(shape, 32, (96, 128, 160, 192)) for shape in shapes]
    assert widths == [96, 96, 128, 160, 192, 192]
    assert width_for(shapes[0], 32, (128,)) == 128


def test_batches_have_few_sizes_and_the_views_of_one_picture_stay_together() -> None:
    recogniser = DarkLeft()
    shades = [round(255 * number / 20) for number in range(21)]
    pictures = [Image.new("RGB", (20, 10), (shade, shade, shade)) for shade in shades]
    predictions = read_pictures(recogniser, pictures, batch_size=8)  # type: ignore[arg-type]
    assert recogniser.seen == [8, 8, 4, 1]
    assert [prediction.text for prediction in predictions] == [f"{1 - shade / 255:.1f}" for shade in shades]
    recogniser.seen.clear()
    read_pictures(recogniser, [half((20, 40), (0, 0, 20, 20))], batch_size=1)  # type: ignore[arg-type]
    assert recogniser.seen == [4]


def test_where_memory_is_short_a_batch_is_read_in_halves_and_in_order() -> None:
    class Small(DarkLeft):
        def read(self, images: Tensor) -> list[Prediction]:
            if len(images) > 2:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
            return super().read(images)

    pictures = [Image.new("RGB", (20, 10), (shade, shade, shade)) for shade in (0, 51, 102, 153, 204)]
    recognizer = Small()
    predictions = read_pictures(recognizer, pictures)  # type: ignore[arg-type]
    assert [prediction.text for prediction in predictions] == ["1.0", "0.8", "0.6", "0.4", "0.2"]
    assert max(recognizer.seen) == 2


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    class Broken(DarkLeft):
        def read(self, images: Tensor) -> list[Prediction]:
            raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        read_pictures(Broken(), [Image.new("RGB", (20, 10))] * 3)  # type: ignore[arg-type]


def test_a_single_view_is_upright_and_in_one_width() -> None:
    recogniser = DarkLeft(encoder=SimpleNamespace(widths=(8, 16, 24)))
    unsure = half((40, 20), (0, 0, 6, 20))
    lying = half((20, 80), (0, 0, 20, 40))
    read_pictures(recogniser, [unsure, lying], single_view=True)  # type: ignore[arg-type]
    assert sum(recogniser.seen) == 2
    read_pictures(recogniser, [unsure, lying])  # type: ignore[arg-type]
    assert sum(recogniser.seen) > 2 + 4
