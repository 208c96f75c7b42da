"""Report of versions, devices, fonts and optional packages; changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import psutil
import torch
from PIL import features

from dptr.cache.errors import UserError
from dptr.cache.processors import usable_processors
from dptr.pipeline.rendering.fonts import find_fonts
from dptr.pipeline.rendering.shaping import needs_shaping

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
