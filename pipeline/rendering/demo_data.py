"""Data for the demo that is already on the machine: words of Python's own sources, photos and fonts of packages.

Nothing is downloaded and nothing personal is read. The words are English with a technical accent; the photos are the
colour pictures that scikit-image installs for its examples, the page is a photographed one among them.
"""

from __future__ import annotations

import io
import re
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dptr.cache.crops.dataset import write_word_images
from dptr.cache.errors import UserError
from dptr.cache.file_names import LABELS_FILE
from dptr.pipeline.rendering.render_words import render_words
from dptr.pipeline.rendering.style import RenderStyle

_WORD = re.compile(r"(?<![A-Za-z_])[a-z]{3,8}(?![A-Za-z_])")
_LEAST_OCCURRENCES = 3
_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg")
_CROPS, _TEST_CROPS = 6000, 200
_PAGE = "page.png"
#: Words of the page by their boxes (left, upper, right, lower), line by line.
_PAGE_LINES = (
    (12, 35, {"Region-based": (5, 144), "segmentation": (149, 294)}),
    (49, 64, {"Let": (4, 26), "us": (31, 49), "first": (54, 83), "determine": (89, 160), "markers": (166, 224)}),
    (49, 64, {"of": (229, 246), "the": (250, 276), "coins": (282, 318), "and": (323, 350)}),
    (65, 85, {"background.": (4, 84), "These": (87, 129), "markers": (132, 189), "are": (191, 216)}),
    (65, 85, {"pixels": (219, 261), "that": (262, 294), "we": (296, 318), "can": (319, 344), "label": (347, 378)}),
)


@dataclass(frozen=True)
class DemoData:
    """Data of the demo: a word list, photos, labelled crops for training and reading, and words of a page."""

    corpus: Path
    photos: list[Path]
    crops: Path
    test_crops: Path
    page: Path


def prepare_demo_data(out: Path) -> DemoData:
    """Write the word list and render the crops into ``out``, unless an earlier run did.

    Raises:
        UserError: words, photos or fonts are not on this machine.
    """
    words, photos = standard_library_words(), packaged_photos()
    data = DemoData(out / "words.txt", photos, out / "crops", out / "test_crops", out / "page.parquet")
    out.mkdir(parents=True, exist_ok=True)
    data.corpus.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    for folder, count, seed in ((data.crops, _CROPS, 0), (data.test_crops, _TEST_CROPS, 1)):
        if not (folder / LABELS_FILE).is_file():
            render_words(words, folder, count=count, seed=seed, style=RenderStyle.of_difficulty(0.0))
    if not data.page.exists():
        _cut_page(data.page)
    return data


def standard_library_words() -> list[str]:
    """Return lower-case words of 3 to 8 letters from the standard library's source files, frequent ones first.

    Raises:
        UserError: this Python came without its library's sources.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    counts: Counter[str] = Counter()
    for path in sorted(folder.glob("*.py")):
        counts.update(_WORD.findall(path.read_text(encoding="utf-8", errors="ignore")))
    words = [
        word
        for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if count >= _LEAST_OCCURRENCES
    ]
    if not words:
        raise UserError(f"{folder} holds no Python sources", "Use a Python with its standard library's sources")
    return words


def packaged_photos() -> list[Path]:
    """Return the colour photos that scikit-image installs.

    Raises:
        UserError: scikit-image is not installed.
    """
    folder = _photo_folder()
    return [folder / name for name in _PHOTOS if (folder / name).is_file()]


def _photo_folder() -> Path:
    try:
        import skimage.data
    except ImportError as error:
        raise UserError("the demo's photos are not installed", "Run: pip install 'dptr[demo]'") from error
    return Path(skimage.data.__file__).parent


def _cut_page(out: Path) -> None:
    """Write the words of the photographed page as labelled crops."""
    with Image.open(_photo_folder() / _PAGE) as page, write_word_images(out) as writer:
        for upper, lower, words in _PAGE_LINES:
            for word, (left, right) in words.items():
                stream = io.BytesIO()
                page.crop((left, upper, right, lower)).save(stream, "PNG")
                writer.write(stream.getvalue(), word)
