"""What this machine has and what is missing for which command; nothing is changed but a file that is removed again."""

from __future__ import annotations

import os
import platform
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterator
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

_LIBRARIES = (
    "dptr",
    "torch",
    "transformers",
    "faiss-cpu",
    "pyarrow",
    "duckdb",
    "numpy",
    "pillow",
    "safetensors",
    "lmdb",
)
#: Module -> what needs it, and how it is installed.
_OPTIONAL = {
    "onnxruntime": ("dptr export --to onnx", "pip install 'dptr[export]'"),
    "onnxscript": ("dptr export --to onnx", "pip install 'dptr[export]'"),
    "skimage": ("dptr demo, which takes its photos", "pip install 'dptr[demo]'"),
    "tensorboard": ("--track tensorboard", "pip install 'dptr[track]'"),
    "readline": ("history and completion of dptr sql", "a Python built with readline"),
}
#: Script -> words that a font must draw to write in it, letters joined and marks in their places.
_SCRIPTS = {
    "Latin": "aZ0é",
    "Vietnamese": "Việt",
    "Greek": "αΩ",
    "Cyrillic": "аЯ",
    "Arabic": "عربي",
    "Hebrew": "אש",
    "Devanagari": "हिन्दी",
    "Bengali": "বাংলা",
    "Tamil": "தமிழ்",
    "Thai": "ที่",
    "Hangul": "가힣",
    "Kana": "あん",
    "Han": "中国",
}
_BYTES = 32 << 20
_SIZE = 512


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its group, its name, what was found, and whether something is missing."""

    group: str
    name: str
    found: str
    missing: bool = False


def examine(folder: Path) -> list[Finding]:
    """Look at versions, devices, arithmetic, the disk that holds ``folder``, fonts and optional libraries."""
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (_versions, _devices, _precisions, _fonts, _libraries)
    return [*(finding for look in looks for finding in look()), *_disk(folder)]


def _versions() -> Iterator[Finding]:
    yield Finding("version", "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in _LIBRARIES:
        yield Finding("version", name, metadata.version(name))


def _devices() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    usable = usable_processors()
    cores = f"{usable} of {os.cpu_count()} cores may be used, torch uses {torch.get_num_threads()}"
    yield Finding("device", "cpu", f"{cores}; {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free")
    load = psutil.getloadavg()[0]
    busy = "; others keep it busy: OMP_NUM_THREADS=1 before a command is quicker with small models"
    yield Finding("device", "load", f"{load:.1f} at work in the last minute" + (busy if load >= usable else ""))
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.cuda.get_device_properties(number)
        yield Finding("device", f"cuda:{number}", f"{device.name}, {device.total_memory / 1e9:.0f} GB")
    if not torch.cuda.is_available():
        yield Finding("device", "cuda", "none: recipe tiny is made for that")


def _precisions() -> Iterator[Finding]:
    """Time products of matrices: where bf16 is not the quicker, ``--precision fp32`` is the one to take."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        one = torch.ones(_SIZE, _SIZE, dtype=dtype, device=device)
        one @ one
        started, rounds = time.perf_counter(), 0
        while time.perf_counter() - started < 0.2:
            (one @ one)[0, 0].item()
            rounds += 1
        rate = 2 * _SIZE**3 * rounds / (time.perf_counter() - started) / 1e9
        yield Finding("precision", f"{name} on {device}", f"{rate:,.0f} billion operations a second")


def _fonts() -> Iterator[Finding]:
    try:
        fonts = list({font.names[0]: font for font in find_fonts().fonts}.values())
    except UserError as error:
        yield Finding("font", "any", str(error), missing=True)
        return
    shapes = features.check("raqm")
    for script, letters in _SCRIPTS.items():
        count = sum(font.covers(letters) for font in fonts)
        text = f"{count} of {len(fonts)} families" if count else "no font: render-words needs --fonts FOLDER"
        if count and needs_shaping(letters) and not shapes:
            text += "; Pillow lacks Raqm, which joins and orders its letters"
        yield Finding("font", script, text, missing=not count)


def _libraries() -> Iterator[Finding]:
    for module, (needed_by, remedy) in _OPTIONAL.items():
        there = util.find_spec(module) is not None
        yield Finding("optional", module, "there" if there else f"missing, for {needed_by}: {remedy}", not there)


def _disk(folder: Path) -> Iterator[Finding]:
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    yield Finding("disk", str(place), f"{free / 1e9:.1f} GB free", missing=free < 1e9)
    if free < 10 * _BYTES:
        return
    trial = place / f".dptr-doctor-{os.getpid()}"
    data = os.urandom(1 << 20)
    try:
        started = time.perf_counter()
        with trial.open("wb") as stream:
            for _ in range(_BYTES >> 20):
                stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        rate = _BYTES / (time.perf_counter() - started) / 1e6
        yield Finding("disk", "writing", f"{rate:,.0f} MB a second, flushed")
    except OSError as error:
        yield Finding("disk", "writing", f"not possible: {error.strerror}", missing=True)
    finally:
        trial.unlink(missing_ok=True)


def script_of(character: str) -> str:
    """Return the script of a letter, as its Unicode name begins: ``LATIN``, ``CJK``, ``HIRAGANA``, …"""
    return unicodedata.name(character, "UNKNOWN").split()[0].split("-")[0].capitalize()
