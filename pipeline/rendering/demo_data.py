"""Data for the demo that is already on the machine: words of Python's own sources, photos and fonts of packages.

Nothing is downloaded and nothing personal is read. The words are English with a technical accent; the photos are the
colour pictures that scikit-image installs for its examples.
"""

from __future__ import annotations

import re
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dptr.cache.errors import UserError
from dptr.pipeline.rendering.render_words import render_words
from dptr.pipeline.rendering.style import RenderStyle

_WORD = re.compile(r"(?<![A-Za-z_])[a-z]{3,8}(?![A-Za-z_])")
_LEAST_OCCURRENCES = 3
_PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg")
_CROPS, _TEST_CROPS = 6000, 200


@dataclass(frozen=True)
class DemoData:
    """What the demo works on: a word list, photos, and labelled crops to train on and to read."""

    corpus: Path
    photos: list[Path]
    crops: Path
    test_crops: Path


def prepare_demo_data(out: Path) -> DemoData:
    """Write the word list and render the crops into ``out``, unless an earlier run did.

    Raises:
        UserError: words, photos or fonts are not on this machine.
    """
    words, photos = standard_library_words(), packaged_photos()
    data = DemoData(out / "words.txt", photos, out / "crops", out / "test_crops")
    out.mkdir(parents=True, exist_ok=True)
    data.corpus.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    for folder, count, seed in ((data.crops, _CROPS, 0), (data.test_crops, _TEST_CROPS, 1)):
        if not (folder / "labels.tsv").is_file():
            render_words(words, folder, count=count, seed=seed, style=RenderStyle.of_difficulty(0.0))
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
    try:
        import skimage.data
    except ImportError as error:
        raise UserError("the demo's photos are not installed", "Run: pip install 'dptr[demo]'") from error
    folder = Path(skimage.data.__file__).parent
    return [folder / name for name in _PHOTOS if (folder / name).is_file()]
