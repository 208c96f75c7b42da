"""Inspection of a user's data and of the machine, for `init` and `doctor`; changes nothing."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image, features

from dptr.cache.crops import label_files
from dptr.cache.crops.dataset import UnreadableImage, WordImages
from dptr.cache.crops.form import NotLabelled
from dptr.cache.errors import UserError
from dptr.cache.pictures import IMAGE_SUFFIXES
from dptr.cache.processes import usable_processors
from dptr.cache.text.charset import Charset
from dptr.pipeline.photos.photo_files import Photo, find_photos
from dptr.pipeline.rendering.fonts import find_fonts
from dptr.pipeline.rendering.shaping import needs_shaping
from dptr.pipeline.rendering.word_lists import text_counts

_PICTURES_LOOKED_AT, _LONGEST_READ = 200, 1000
#: Median number of pixels above which pictures are photos or pages, not crops.
_LARGEST_CROP = 150_000
_FEWEST, _FEW = 6, 20
#: Minimum fraction of the labels' characters in the recogniser's charset.
_KNOWN = 0.8
#: Bytes that no text has.
_BINARY = frozenset(range(9)) | frozenset(range(14, 27))
#: Scripts of the bundled recogniser ``scripts`` besides Latin.
_READ_BY_SCRIPTS = frozenset({"Cyrillic", "Devanagari", "Greek", "Hebrew", "Thai"})

Size = tuple[int, int]


@dataclass
class Look:
    """Findings by named path; ``sizes`` are of labelled crops, in pixels."""

    text: list[Path] = field(default_factory=list)
    crops: list[Path] = field(default_factory=list)
    photos: list[Path] = field(default_factory=list)
    unlabelled: list[Path] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    pictures: Counter[Path] = field(default_factory=Counter)

    @property
    def main_script(self) -> str | None:
        """The script of most letters, as Unicode names begin; None without letters."""
        letters = Counter(c for label in (*self.labels, *self.words) for c in label if c.isalpha())
        scripts: Counter[str] = Counter()
        for letter, count in letters.items():
            scripts[_script_of(letter)] += count
        return scripts.most_common(1)[0][0] if scripts else None

    def lines(self) -> list[str]:
        """Return the findings, for people."""
        lines = []
        if self.words:
            lines.append(f"text: {len(self.words):,} words in {_names(self.text)}")
        if self.labels:
            lengths = sorted(map(len, self.labels))
            width, height = np.median(np.array(self.sizes), axis=0).tolist()
            lines.append(
                f"labelled crops: {len(self.labels):,} in {_names(self.crops)}; labels of {lengths[len(lengths) // 2]} "
                f"characters (median), {lengths[-1]} at most; {width:.0f} x {height:.0f} pixels (median)"
            )
        for what, paths in (("photos", self.photos), ("unlabelled crops", self.unlabelled)):
            lines += [f"{what}: {self.pictures[path]:,} in {path}" for path in paths]
        return lines

    def obstacles(self) -> list[str]:
        """Return reasons why training cannot help yet."""
        found = []
        if not self.crops:
            found.append(
                f"no labelled crops: nothing can be measured. Label {_FEW} or more, a picture and its text a line of "
                "labels.tsv (picture, tab, text)"
            )
        elif len(self.labels) < _FEWEST:
            found.append(f"{len(self.labels)} labelled crops are too few to train on: label {_FEW} or more")
        elif _is_large(self.sizes):
            found.append(
                "the labelled pictures are as large as pages or photos: cut out words or lines first, a label each "
                "(`dptr read --boxes` reads the words of a page)"
            )
        return found

    def remarks(self) -> list[str]:
        """Return what limits the training."""
        found = []
        if _FEWEST <= len(self.labels) < _FEW:
            found.append(f"{len(self.labels)} labelled crops: the measured accuracy will be uncertain by 20 points")
        characters = Counter(c for label in self.labels for c in label if not c.isspace())
        known = set(Charset.named("94").characters)
        script = self.main_script if self.main_script in _READ_BY_SCRIPTS else None
        new = [c for c in characters if c not in known and _script_of(c) != script]
        if sum(characters[c] for c in new) > (1 - _KNOWN) * sum(characters.values()):
            with_text = "" if self.text else "; give text that has them, for crops to be rendered of"
            found.append(
                f"charset: {len(new)} of {len(characters)} characters are new to the recogniser, such as "
                f"{''.join(sorted(new)[:10])}{with_text}"
            )
        if self.labels and not self.text:
            found.append("no text: a list of words or lines that your crops may show helps more than more crops")
        return found

    def command(self, out: Path) -> str:
        """Return the command that adapts a recogniser to what was found."""
        start = "scripts" if self.main_script in _READ_BY_SCRIPTS else "bundled"
        parts = ["dptr", "finetune", *map(str, self.crops), "--from", start]
        for option, paths in (("--text", self.text), ("--photos", self.photos), ("--unlabelled", self.unlabelled)):
            parts += [word for path in paths for word in (option, str(path))]
        return shlex.join([*parts, "-o", str(out)])


def look_at(paths: Sequence[Path]) -> Look:
    """Classify paths as text, labelled crops, photos or unlabelled crops, and measure each.

    Raises:
        UserError: a path does not exist, is none of these, or holds labelled crops that are damaged.
    """
    look = Look()
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no {path}", "Name text files, labelled crops and folders of pictures")
        crops = _labelled(path)
        if crops is not None:
            look.crops.append(path)
            look.labels += [" ".join(sample.label.split()) for sample in crops.samples]
            look.sizes += _sizes_of_crops(crops)
        elif path.is_dir():
            sizes, count = _sizes_of_pictures(path)
            look.pictures[path] = count
            (look.photos if _is_large(sizes) else look.unlabelled).append(path)
        else:
            _require_text(path)
            look.text.append(path)
            look.words += text_counts([str(path)], "word", _LONGEST_READ)
    return look


def _script_of(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0].capitalize()


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(map(str, paths))


def _is_large(sizes: Sequence[Size]) -> bool:
    return float(np.median([width * height for width, height in sizes])) > _LARGEST_CROP


def _require_text(path: Path) -> None:
    """Raise :class:`UserError` where a file that no reader of compressed or tabular text takes is no text."""
    with path.open("rb") as stream:
        start = stream.read(1 << 16)
    if path.suffix not in (".gz", ".bz2", ".xz", ".zst", ".parquet") and _BINARY.intersection(start):
        raise UserError(f"{path} is neither text nor labelled crops", "Name a text file in UTF-8")


def _labelled(path: Path) -> WordImages | None:
    """Open what may be labelled crops; those that are damaged are an error and not text or photos."""
    try:
        return WordImages.open_as_written([path])
    except NotLabelled:
        if path.is_dir() and label_files.find(path):
            raise
        return None


def _sizes_of_crops(crops: WordImages) -> list[Size]:
    chosen = np.random.default_rng(0).permutation(len(crops))[:_PICTURES_LOOKED_AT]
    sizes: list[Size] = []
    problem = ""
    for index in chosen.tolist():
        try:
            sizes.append(crops.image(index).size)
        except UnreadableImage as error:
            problem = str(error)
    if not sizes:
        raise UserError(f"none of {len(chosen)} crops can be read: {problem}", "Copy or write them again")
    return sizes


def _sizes_of_pictures(folder: Path) -> tuple[list[Size], int]:
    """Return sizes of some pictures in a folder, and how many there are."""
    files = [Path(found.source) for found in find_photos([folder]) if isinstance(found, Photo) and not found.key]
    files = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    sizes = []
    for index in np.random.default_rng(0).permutation(len(files))[:_PICTURES_LOOKED_AT].tolist():
        try:
            with Image.open(files[index]) as picture:
                sizes.append(picture.size)
        except OSError:
            continue
    if not sizes:
        raise UserError(f"{folder} holds neither labelled crops nor images", "Name a folder that does")
    return sizes, len(files)


_LIBRARIES = ("dptr", "torch", "transformers", "faiss-cpu", "pyarrow", "duckdb", "numpy", "pillow", "safetensors")
#: Module -> the command that needs it, and how to install it.
_OPTIONAL = {
    "onnxruntime": ("dptr export --to onnx", "pip install 'dptr[export]'"),
    "onnxscript": ("dptr export --to onnx", "pip install 'dptr[export]'"),
    "skimage": ("dptr demo, which takes its photos", "pip install 'dptr[demo]'"),
    "tensorboard": ("--track tensorboard", "pip install 'dptr[track]'"),
    "readline": ("history and completion of dptr sql", "a Python built with readline"),
}
#: Script -> words that a font must draw to write in it, letters joined and marks in their places.
_SCRIPTS = {
    "Latin": "aZ0é", "Vietnamese": "Việt", "Greek": "αΩ", "Cyrillic": "аЯ", "Arabic": "عربي", "Hebrew": "אש",
    "Devanagari": "हिन्दी", "Bengali": "বাংলা", "Tamil": "தமிழ்", "Thai": "ที่", "Hangul": "가힣", "Kana": "あん",
    "Han": "中国",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """A line of the report: group, name, finding, and whether something is missing."""

    group: str
    name: str
    found: str
    missing: bool = False


def examine(folder: Path) -> list[Finding]:
    """Examine versions, devices, fonts, optional libraries, and the disk that holds ``folder``."""
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    disk = Finding("disk", str(place), f"{free / 1e9:.1f} GB free", missing=free < 1e9)
    return [*_versions(), *_devices(), *_fonts(), *_libraries(), disk]


def _versions() -> Iterator[Finding]:
    yield Finding("version", "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in _LIBRARIES:
        yield Finding("version", name, metadata.version(name))


def _devices() -> Iterator[Finding]:
    memory, usable, load = psutil.virtual_memory(), usable_processors(), psutil.getloadavg()[0]
    cores = f"{usable} of {os.cpu_count()} cores may be used, torch uses {torch.get_num_threads()}"
    yield Finding("device", "cpu", f"{cores}; {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free")
    busy = "; other programs use it: OMP_NUM_THREADS=1 is faster with small models"
    yield Finding("device", "load", f"{load:.1f} at work in the last minute" + (busy if load >= usable else ""))
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(number)
        yield Finding("device", f"cuda:{number}", f"{device.name}, {device.total_memory / 1e9:.0f} GB")
    if not torch.cuda.is_available():
        yield Finding("device", "cuda", "none")


def _fonts() -> Iterator[Finding]:
    try:
        fonts = list({font.names[0]: font for font in find_fonts().fonts}.values())
    except UserError as error:
        yield Finding("font", "any", str(error), missing=True)
        return
    for script, letters in _SCRIPTS.items():
        count = sum(font.covers(letters) for font in fonts)
        text = f"{count} of {len(fonts)} families" if count else "no font: render-words needs --fonts FOLDER"
        if count and needs_shaping(letters) and not features.check("raqm"):
            text += "; Pillow lacks Raqm, which joins and orders its letters"
        yield Finding("font", script, text, missing=not count)


def _libraries() -> Iterator[Finding]:
    for module, (needed_by, remedy) in _OPTIONAL.items():
        there = util.find_spec(module) is not None
        yield Finding("optional", module, "there" if there else f"missing, for {needed_by}: {remedy}", not there)
