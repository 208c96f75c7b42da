"""Train a small CLIP on labelled crops, so that text and image embeddings share a space.

    python examples/train_clip/train.py --data crops.parquet --validation others.parquet --photos photos/ -o my_clip

`my_clip/clip` is then a CLIP for `--clip`. Rerun an interrupted command to resume it. With the defaults, the bundled
CLIP's 11,300 steps take an hour on one core; `pipeline/clip/tiny/README.md` has its accuracy.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tomllib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from learner import DESCRIPTIONS, ClipBatch, ClipLearner, open_learner, take_weights
from numpy.typing import NDArray
from PIL import Image, ImageFont
from pydantic import Field, ValidationError
from torch import Tensor, nn

from dptr.cache.crops.dataset import UnreadableImage, WordImages, preprocess
from dptr.cache.errors import UserError, run_script
from dptr.cache.file_names import WEIGHTS_FILE
from dptr.cache.pictures import photo_thumbnail
from dptr.cache.progress import note
from dptr.cache.row_set import EveryRow
from dptr.cache.stores.files import atomic_path, sha256_of
from dptr.cache.text import reading_order
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.cache.text.units import clusters
from dptr.pipeline.clip.clip_files import find_clip
from dptr.pipeline.rendering.word_lists import photo_paths
from dptr.pipeline.text.templates import Template
from dptr.trainer.data.batch_order import BatchOrder
from dptr.trainer.model.model_file import save_tensors
from dptr.trainer.recipe import TrainingSettings
from dptr.trainer.training import loop
from dptr.trainer.training.checkpoint import AVERAGE, MODEL, checkpoint_folder, load_state, load_tensors

_BATCH = 100
#: Photos are shown at the size of a crop; rectangles have at least so large a share of their sides.
_PHOTO_SIDE, _LEAST_SHARE = 480, 0.2
#: Share of a crop's width that is left free on each side.
_MARGIN = 0.03


class ClipSettings(TrainingSettings):
    """``photos`` rectangles without text join each batch as negatives; weights are those of the auxiliary losses."""

    steps: int = Field(default=12_000, ge=1)
    batch_size: int = Field(default=64, ge=1)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["one-cycle", "cosine", "constant", "trapezoid"] = "cosine"
    warmup_share: float = Field(default=0.03, ge=0, le=1)
    clip_norm: float = Field(default=1.0, ge=0)
    precision: Literal["fp32", "bf16"] = "bf16"
    checkpoint_every: int = Field(default=250, ge=1)
    validation_rows: int = Field(default=1000, ge=1)
    template: str = "a photo of a '{label}'"
    photos: int = Field(default=4, ge=0)
    letters_weight: float = Field(default=1.0, ge=0)
    embeddings_weight: float = Field(default=0.5, ge=0)


def letters_by_column(label: str, columns: int, alphabet: str) -> NDArray[np.int64]:
    """Return which letter stands at the middle of each column of a crop, estimated from the letters' usual widths.

    Returns:
        Shape (columns,): 1 and up count through ``alphabet``, 0 is any other character.
    """
    if reading_order.runs_right_to_left(label):
        label = "".join(reading_order.seen(clusters(label))[0])
    edges = np.cumsum([0.0, *(_width(character) for character in label)])
    edges = edges / edges[-1] * (1 - 2 * _MARGIN) + _MARGIN
    middles = (np.arange(columns) + 0.5) / columns
    positions = np.clip(np.searchsorted(edges, middles) - 1, 0, len(label) - 1)
    return np.array([alphabet.find(character.lower()) + 1 for character in label], np.int64)[positions]


@lru_cache(maxsize=65536)
def _width(character: str) -> float:
    # A mark above or below a letter takes next to none.
    is_mark = unicodedata.category(character) == "Mn"
    return 0.01 if is_mark else max(1.0, ImageFont.load_default(64).getlength(character))


class Prompts:
    """Labels -> token ids (labels, tokens) int64, padded with the end token; picklable, for workers."""

    def __init__(self, tokenizer: Any, template: str) -> None:
        self._tokenizer, self._template = tokenizer, Template(template)

    def __call__(self, labels: Sequence[str]) -> Tensor:
        """Tokenize the prompts of ``labels``."""
        rows = self._tokenizer([self._template.prompt(label) for label in labels])["input_ids"]
        longest, end = max(map(len, rows)), self._tokenizer.eos_token_id
        return torch.tensor([row + [end] * (longest - len(row)) for row in rows])


@dataclass
class ClipBatches:
    """Batch number -> :class:`ClipBatch`; a pure function of the seed and the number."""

    images: WordImages
    photos: Sequence[Path]
    prompts: Prompts
    settings: ClipSettings
    size: int
    columns: int
    alphabet: str

    def __post_init__(self) -> None:
        self._order = BatchOrder(EveryRow(len(self.images)), None, self.settings.batch_size, self.settings.seed)

    def __call__(self, number: int) -> ClipBatch:
        """Return batch ``number``, counted from 0 through all epochs."""
        rows, unreadable = readable(self.images, self._order.rows_of(number).tolist(), self.size)
        if not rows:
            raise UserError(f"batch {number} has no readable image: {unreadable[0]}", "Check the data")
        labels = [self.images.samples[row].label for row in rows]
        rng = np.random.default_rng((self.settings.seed, 6, number))
        pixels = [*rows.values(), *(self._photo(rng) for _ in range(self.settings.photos if self.photos else 0))]
        letters = np.stack([letters_by_column(label, self.columns, self.alphabet) for label in labels])
        images = torch.from_numpy(np.stack(pixels))
        return ClipBatch(images, self.prompts(labels), torch.from_numpy(letters), tuple(unreadable))

    def _photo(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Draw a rectangle of a photo, of any size and shape."""
        photo = photo_thumbnail(self.photos[int(rng.integers(len(self.photos)))], _PHOTO_SIDE)
        width, height = (np.array(photo.size) * rng.uniform(_LEAST_SHARE, 1, 2)).tolist()
        left, top = (rng.random(2) * (photo.width - width, photo.height - height)).tolist()
        box = (left, top, left + width, top + height)
        cut = photo.resize((self.size, self.size), Image.Resampling.BICUBIC, box)
        return preprocess(cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut, *cut.size)


def readable(images: WordImages, rows: Sequence[int], size: int) -> tuple[dict[int, NDArray[np.uint8]], list[str]]:
    """Return the pixels (3, size, size) of each of ``rows`` that can be read, and why the others cannot."""
    pixels, problems = dict[int, NDArray[np.uint8]](), list[str]()
    for row in rows:
        try:
            pixels[row] = preprocess(images.image(row), size, size)
        except UnreadableImage as error:
            problems.append(str(error))
    return pixels, problems


@torch.inference_mode()
def retrieval(
    model: nn.Module, images: WordImages, prompts: Prompts, most: int, reject: Callable[[Sequence[str]], None]
) -> dict[str, float]:
    """Return how often the prompt nearest to an image is its own, among the prompts of ``most`` different words."""
    assert isinstance(model, ClipLearner)
    model.train(False)
    device = model.get_buffer("mean").device
    first = {sample.label.lower(): row for row, sample in reversed(list(enumerate(images.samples)))}
    # Evenly over all: crops of several scripts stand one after another.
    spread = np.linspace(0, len(first) - 1, min(most, len(first))).astype(int)
    chosen = np.array(sorted(first.values()))[spread].tolist()
    texts, seen = list[Tensor](), list[Tensor]()
    for start in range(0, len(chosen), _BATCH):
        pixels, unreadable = readable(images, chosen[start : start + _BATCH], model.size)
        reject(unreadable)
        if pixels:
            seen.append(model.encode_images(torch.from_numpy(np.stack(list(pixels.values()))).to(device))[0])
            texts.append(model.encode_texts(prompts([images.samples[row].label for row in pixels]).to(device))[0])
    if not seen:
        raise UserError("not one validation image can be read", "Check the folder given with --validation")
    similarities = torch.cat(seen) @ torch.cat(texts).T
    right = torch.arange(len(similarities), device=similarities.device)
    top1 = (similarities.argmax(1) == right).float().mean().item()
    return {"score": top1, "top1": top1, "prompts": float(len(right))}


def train(arguments: argparse.Namespace) -> dict[str, float]:
    """Train, or resume, and write the CLIP to ``OUT/clip``; return the metrics of what is written."""
    settings, out, like = settings_of(arguments), arguments.out, find_clip(arguments.clip)
    charset = Charset.named(arguments.charset)
    images = WordImages.open(arguments.data, charset, Normalization())
    others = WordImages.open(arguments.validation, charset, Normalization())
    known = {sample.label.lower() for sample in images.samples} & {sample.label.lower() for sample in others.samples}
    if known:
        raise UserError(f"{len(known)} words are in both sets, such as {min(known)!r}", "Validate with unseen words")
    photos = photo_paths(arguments.photos) if arguments.photos else []
    if bool(photos) != bool(settings.photos):
        raise UserError("photos are either not given or not used", "Give --photos FOLDER, or --set photos=0")
    torch.manual_seed(settings.seed)
    alphabet = "".join(sorted({char for char in "".join(charset.characters).lower() if not char.isspace()}))
    learner, tokenizer = open_learner(like, len(alphabet))
    start = None if arguments.start == "none" else find_clip(arguments.start)
    if start is not None:
        take_weights(learner.clip, tokenizer.get_vocab(), start)
    require_same_run(
        out,
        {
            "settings": settings.model_dump(exclude=set(settings.HOW)),
            "data": [images.identity(), others.identity(), [path.name for path in photos]],
            "like": [sha256_of(like / name) for name in DESCRIPTIONS],
            "start": start and sha256_of(start / WEIGHTS_FILE),
        },
    )
    device = torch.device(arguments.device)
    learner.to(device)
    prompts, unreadable = Prompts(tokenizer, settings.template), set[str]()

    def reject(lines: Sequence[str]) -> None:
        for line in sorted(set(lines) - unreadable):
            note(f"rejected: {line}")
        unreadable.update(lines)

    def validate(model: nn.Module) -> dict[str, float]:
        return retrieval(model, others, prompts, settings.validation_rows, reject)

    task = loop.Task(
        model=learner,
        batch=ClipBatches(images, photos, prompts, settings, learner.size, learner.columns, alphabet),
        loss=lambda batch: learner.loss(batch, settings.letters_weight, settings.embeddings_weight),
        notice=lambda batch: reject(batch.unreadable),
        validate=validate,
        groups=[loop.ParameterGroup(list(learner.parameters()))],
    )
    loop.run(out, task, settings, device)
    best, group = checkpoint_folder(out, "best"), AVERAGE if settings.ema_decay else MODEL
    load_state(best, only=(group,))
    learner.load_state_dict(load_tensors(best, group))
    (out / "clip").mkdir(exist_ok=True)
    for name in DESCRIPTIONS:
        shutil.copyfile(like / name, out / "clip" / name)
    # Half precision is below what training leaves undecided, and half the download.
    tensors = {name: tensor.half().contiguous().cpu() for name, tensor in learner.clip.state_dict().items()}
    with atomic_path(out / "clip" / WEIGHTS_FILE) as temporary:
        save_tensors(tensors, temporary, {"format": "pt"})
    return validate(learner)


def require_same_run(out: Path, identity: dict[str, Any]) -> None:
    """Write what fixes a run into its folder, or check that the run there has the same."""
    text, path = json.dumps(identity, indent=2, sort_keys=True), out / "identity.json"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"{out} holds a run of other settings, data or weights to start from", "Choose another -o")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def settings_of(arguments: argparse.Namespace) -> ClipSettings:
    """Return the settings that --steps, --seed and --set give."""
    values = {name: getattr(arguments, name) for name in ("steps", "seed") if getattr(arguments, name) is not None}
    for change in arguments.set:
        key, _, text = change.partition("=")
        try:
            values[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key] = text
    try:
        return ClipSettings(**values)
    except ValidationError as error:
        raise UserError(f"--set: {error}", f"Keys are: {', '.join(ClipSettings.model_fields)}") from error


def main() -> None:
    """Parse, train, print what the CLIP reaches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="labelled crops")
    parser.add_argument("--validation", type=Path, nargs="+", required=True, help="labelled crops of other words")
    parser.add_argument("--photos", type=Path, help="folder of photos without text")
    parser.add_argument("--charset", default="94", help="name or file, as for dptr finetune")
    parser.add_argument("--clip", default="tiny", help="the CLIP whose shape, tokenizer and preprocessing are taken")
    parser.add_argument("--from", dest="start", default="none", help="`tiny` or a CLIP's folder to take weights from")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--set", action="append", default=[], help="key=value of the settings; may be repeated")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    metrics = train(arguments)
    print(f"the right prompt among {metrics['prompts']:,.0f}: {metrics['top1']:.1%}\nCLIP: {arguments.out / 'clip'}")


if __name__ == "__main__":
    run_script(main)
