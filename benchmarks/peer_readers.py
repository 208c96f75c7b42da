"""The recognisers that `peers.py` compares, each run so that it does its best on crops that hold one word.

Tesseract
    Page mode 8 (one word), LSTM engine, English. Grey, 40 pixels high with the shape kept, without an added border (a
    white one costs it accuracy), inverted where the border is darker than the middle of the crop's range. All crops
    go through one process by a list file, one page each; the time of a list of one crop is taken off, so that its
    start is not counted.
RapidOCR
    The recogniser of PP-OCRv4 or PP-OCRv6 alone, in its own preprocessing. Detector and classifier of direction look
    for text in a page and are neither run nor counted. It runs in whatever Python it is installed for.
dptr
    A fine-tuning run, or what `dptr export` wrote: .safetensors or .onnx.

Milliseconds are processor time a crop, one crop at a time, one thread: on a machine with nothing else to do that is the
time on one core, and on a busy one it stays comparable. A second figure is that of many crops at once, on one thread as
well: 64 a batch, sorted by width, for dptr; six for RapidOCR, as it is set; Tesseract takes its list one by one.
Resizing is counted for all, decoding of picture files for none (Tesseract reads an uncompressed file).
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dptr.cache.crops.dataset import preprocess
from dptr.cache.errors import UserError
from dptr.cache.text.charset import Charset
from dptr.trainer.model.reading import width_for

#: Must be in the environment before any of the libraries is loaded.
ONE_THREAD = {"OMP_THREAD_LIMIT": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

_TESSERACT_HEIGHT = 40
_STARTS = 5
_BATCH = 64
_WORKER = Path(__file__).with_name("rapidocr_worker.py")


class NotInstalled(Exception):
    """A peer is not there; the text says how to get it."""


@dataclass(frozen=True)
class Predictions:
    """Prediction of each crop, and what it took.

    Attributes:
        milliseconds: a crop on one core, one at a time. batched: the same where many are read at once.
        megabytes: size of the model, 10^6 bytes.
    """

    texts: list[str]
    milliseconds: float
    batched: float
    megabytes: float


Reader = Callable[[Sequence[Image.Image]], Predictions]
Read = Callable[[Sequence[Image.Image]], list[str]]


def read_with_tesseract(images: Sequence[Image.Image], program: str) -> Predictions:
    """Read with Tesseract: one process for all crops, its start taken off by the time of a list of one."""
    if shutil.which(program) is None:
        raise NotInstalled("not installed: apt install tesseract-ocr")
    started = time.process_time()
    pages = [for_tesseract(image) for image in images]
    preparing = time.process_time() - started
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.pgm" for number in range(len(pages))]
        for path, page in zip(paths, pages, strict=True):
            page.save(path)
        text, prediction = run_tesseract(program, paths)
        starting = sorted(run_tesseract(program, paths[:1])[1] for _ in range(_STARTS))[_STARTS // 2]
        megabytes = tesseract_model(program).stat().st_size / 1e6
    texts = text.split("\f")
    if len(texts) == len(images) + 1:  # version 4 ends pages with a form feed, version 5 parts them by it
        texts.pop()
    if len(texts) != len(images):
        raise UserError(f"Tesseract read {len(texts)} of {len(images)} crops", "Try it by itself on a list of pictures")
    rest = max(len(images) - 1, 1)
    milliseconds = ((prediction - starting) / rest + preparing / len(images)) * 1000
    return Predictions(texts, milliseconds, milliseconds, megabytes)


def for_tesseract(image: Image.Image) -> Image.Image:
    """Return the crop grey, 40 pixels high, dark on light."""
    grey = image.convert("L")
    width = max(round(grey.width * _TESSERACT_HEIGHT / grey.height), 1)
    grey = grey.resize((width, _TESSERACT_HEIGHT), Image.Resampling.BICUBIC)
    pixels = np.asarray(grey)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    middle = (float(pixels.min()) + float(pixels.max())) / 2
    return ImageOps.invert(grey) if np.median(border) < middle else grey


def run_tesseract(program: str, paths: Sequence[Path]) -> tuple[str, float]:
    """Return the text of all pages and the process's processor seconds."""
    names = paths[0].with_name("list.txt")
    names.write_text("".join(f"{path}\n" for path in paths), encoding="utf-8")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [program, str(names), "stdout", "-l", "eng", "--oem", "1", "--psm", "8"]
    done = subprocess.run(command, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise UserError(
            f"Tesseract failed: {done.stderr.strip()[-200:]}", "Install its English model (tesseract-ocr-eng)"
        )
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def tesseract_model(program: str) -> Path:
    """Return the file of Tesseract's English model."""
    listed = subprocess.run([program, "--list-langs"], capture_output=True, text=True, check=True)
    folder = re.search(r'"(.*)"', listed.stdout + listed.stderr)
    return Path(folder[1] if folder else ".") / "eng.traineddata"


def read_with_rapidocr(images: Sequence[Image.Image], python: str) -> Predictions:
    """Read with RapidOCR's recogniser, in the Python it is installed for."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "crops.npz"
        np.savez(path, **{str(number): np.asarray(image) for number, image in enumerate(images)})  # type: ignore[arg-type]
        done = subprocess.run([python, str(_WORKER), str(path)], capture_output=True, text=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        if "ModuleNotFoundError" in last[0]:
            raise NotInstalled(
                f"not installed: pip install rapidocr-onnxruntime, or rapidocr and onnxruntime ({last[0]})"
            )
        raise UserError(f"RapidOCR failed: {last[0]}", "Try it by itself in the Python that --rapidocr-python names")
    return Predictions(**json.loads(done.stdout.splitlines()[-1]))


def read_with_dptr(
    images: Sequence[Image.Image], path: Path, words: str | None = None, single_view: bool = False
) -> Predictions:
    """Read with a fine-tuning run or an exported model; a graph has no words and always reads a crop once."""
    read, megabytes = onnx_reader(path) if path.suffix == ".onnx" else torch_reader(path, words, single_view)
    for some in (images[:1], images[:_BATCH]):  # the first reading also allocates
        read(some)
    started = time.process_time()
    texts = [text for image in images for text in read([image])]
    between = time.process_time()
    read(images)
    alone, batched = ((seconds / len(images) * 1000) for seconds in (between - started, time.process_time() - between))
    return Predictions(texts, alone, batched, megabytes)


def torch_reader(path: Path, words: str | None, single_view: bool) -> tuple[Read, float]:
    """Return the reader of a run or a .safetensors, and the size of its weights in MB."""
    import torch

    from dptr.trainer.model.reading import read_pictures
    from dptr.trainer.read import load

    torch.set_num_threads(1)
    recognizer = load(path, lexicon=words).recognizer
    weights = sum(tensor.nbytes for tensor in recognizer.state_dict().values())
    size = path.stat().st_size if path.is_file() else weights

    def read(images: Sequence[Image.Image]) -> list[str]:
        return [found.text for found in read_pictures(recognizer, images, "cpu", _BATCH, single_view)]

    return read, size / 1e6


def onnx_reader(path: Path) -> tuple[Read, float]:
    """Return the reader of an exported graph, and the size of its file in MB."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    described = session.get_modelmeta().custom_metadata_map
    charset = Charset(json.loads(described["charset"]))
    height = int(described["image_height"])
    widths = [int(width) for width in described.get("image_widths", described["image_width"]).split(",")]

    def read(images: Sequence[Image.Image]) -> list[str]:
        texts: dict[int, str] = {}
        wanted = [width_for(image, height, widths) for image in images]
        for width in sorted(set(wanted)):
            of_width = [place for place, its in enumerate(wanted) if its == width]
            for start in range(0, len(of_width), _BATCH):
                batch = of_width[start : start + _BATCH]
                pixels = np.stack([preprocess(images[place], height, width) for place in batch])
                ids, _ = session.run(None, {"images": pixels})
                texts |= {place: charset.decode(row) for place, row in zip(batch, ids, strict=True)}
        return [texts[place] for place in range(len(images))]

    return read, path.stat().st_size / 1e6
