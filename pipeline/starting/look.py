"""Measures somebody's data: how much of what there is, in which script, how long and how large."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dptr.cache.errors import UserError
from dptr.cache.word_images import label_files
from dptr.cache.word_images.dataset import UnreadableImage, WordImages
from dptr.cache.word_images.form import NotLabelled
from dptr.pipeline.photos.photo import Photo
from dptr.pipeline.photos.photo_files import find_photos
from dptr.pipeline.rendering.word_lists import read_words
from dptr.pipeline.starting.doctor import script_of

_PICTURES_LOOKED_AT = 200
_LONGEST_READ = 1000
#: Of labels, that a charset should be able to spell, and a longest label should hold.
_MOST = 0.999


@dataclass
class Labels:
    """Words of a kind: how many, their characters with counts, their lengths, and how many have upper case."""

    words: int = 0
    characters: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    scripts: Counter[str] = field(default_factory=Counter)

    def add(self, labels: Iterable[str]) -> None:
        """Count labels; spaces count as no character."""
        for label in labels:
            kept = "".join(label.split())
            if kept:
                self.words += 1
                self.characters.update(kept)
                self.lengths.append(len(kept))
        letters = {c: count for c, count in self.characters.items() if c.isalpha()}
        self.scripts = Counter()
        for character, count in letters.items():
            self.scripts[script_of(character)] += count

    def longest(self) -> int:
        """Return the length that 99.9 % of the words do not exceed."""
        return int(np.quantile(self.lengths, _MOST, method="higher"))


@dataclass
class Look:
    """What was found: ``corpora``, labelled ``crops`` and ``photos``, by what was named, with what they hold."""

    corpora: list[Path] = field(default_factory=list)
    crops: list[Path] = field(default_factory=list)
    photos: list[Path] = field(default_factory=list)
    labels: Labels = field(default_factory=Labels)
    crop_labels: Labels = field(default_factory=Labels)
    photo_count: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def all_characters(self) -> Counter[str]:
        """Characters of words and of labels of crops, with counts."""
        return self.labels.characters + self.crop_labels.characters

    @property
    def main_script(self) -> str | None:
        """The script of most letters; None where there are no letters."""
        scripts = self.labels.scripts + self.crop_labels.scripts
        return scripts.most_common(1)[0][0] if scripts else None


def look_at(paths: Sequence[Path]) -> Look:
    """Tell word lists, labelled crops and photos apart, and measure each.

    Raises:
        UserError: a path does not exist, is none of these, or holds labelled crops that are damaged.
    """
    look = Look()
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no {path}", "Name word lists, labelled crops and folders of photos")
        crops = _labelled(path)
        if crops is not None:
            look.crops.append(path)
            look.crop_labels.add(sample.label for sample in crops.samples)
            look.sizes += _sizes(crops)
        elif path.is_dir():
            count = sum(isinstance(found, Photo) for found in find_photos([path]))
            if not count:
                raise UserError(f"{path} holds neither labelled crops nor photos", "Name what it belongs to")
            look.photos.append(path)
            look.photo_count += count
        else:
            look.corpora.append(path)
            look.labels.add(read_words([str(path)], max_length=_LONGEST_READ))
    return look


def _labelled(path: Path) -> WordImages | None:
    """Open what may be labelled crops; those that are damaged are an error and not words or photos."""
    try:
        return WordImages.open_as_written([path])
    except NotLabelled:
        if path.is_dir() and label_files.find(path):
            raise
        return None


def _sizes(crops: WordImages) -> list[tuple[int, int]]:
    chosen = np.random.default_rng(0).permutation(len(crops))[:_PICTURES_LOOKED_AT]
    sizes: list[tuple[int, int]] = []
    problem = ""
    for index in chosen.tolist():
        try:
            sizes.append(crops.image(index).size)
        except UnreadableImage as error:
            problem = str(error)
    if not sizes:
        raise UserError(f"none of {len(chosen)} crops can be read: {problem}", "Copy or write them again")
    return sizes
