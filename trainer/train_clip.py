"""Train a small CLIP on rendered words, so that text and image states share a space without any download."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dptr.cache.charset import Charset
from dptr.cache.errors import UserError
from dptr.cache.file_names import IMAGE_PROCESSOR_FILE, MODEL_CONFIG_FILE, TOKENIZER_FILES, WEIGHTS_FILE
from dptr.cache.progress import note
from dptr.cache.stores.files import atomic_path
from dptr.cache.word_images.dataset import UnreadableImage, WordImages, preprocess
from dptr.trainer.data.clip_batches import ClipBatches, Prompts
from dptr.trainer.data.letter_positions import alphabet_of
from dptr.trainer.model.clip_learner import ClipLearner
from dptr.trainer.model.clip_start import take_weights_of_clip
from dptr.trainer.tensor_file import save_tensors
from dptr.trainer.training import loop, runs
from dptr.trainer.training.recipe import Recipe
from dptr.trainer.training.summary import TrainingSummary
from dptr.trainer.training.trackers import Tracker, observer

#: What a CLIP's folder holds besides its weights.
_DESCRIPTIONS = (MODEL_CONFIG_FILE, IMAGE_PROCESSOR_FILE, *TOKENIZER_FILES)
_BATCH = 100


@dataclass(frozen=True)
class TrainClipSummary(TrainingSummary):
    """What training came to; ``model`` is the folder that ``--clip`` takes."""

    model: Path


def train_clip(
    images: WordImages,
    validation: WordImages,
    charset: Charset,
    photos: Sequence[Path],
    like: Path,
    prompt: Callable[[str], str],
    start: runs.Run | Path | None,
    recipe: Recipe,
    out: Path,
    device: str | torch.device = "cpu",
    track: Tracker | None = None,
) -> TrainClipSummary:
    """Train a CLIP, or go on where an earlier call stopped; write it to ``out/clip`` as transformers saves models.

    Args:
        images: word images to learn from. validation: those to validate with, of other words.
        charset: of both; its letters are classified, case aside.
        photos: image files without text; empty for none.
        like: folder with the configuration, tokenizer and preprocessing to use.
        prompt: label to sentence.
        start: run to take the weights from, such as one on easier images, or the folder of a CLIP, which may know other
            pieces; None for new weights.

    Raises:
        UserError: ``like`` is no square CLIP, words are on both sides, or photos are given and not asked for, or asked
            for and not given. DamagedStore: ``out`` holds another run.
    """
    started = time.monotonic()
    _require_apart(images, validation)
    if bool(photos) != bool(recipe.clip.photos):
        raise UserError(
            f"{len(photos)} photos are given, and clip.photos = {recipe.clip.photos} of them join each batch",
            "Name a folder with --photos, or train without: --set clip.photos=0",
        )
    torch.manual_seed(recipe.clip.seed)
    alphabet = alphabet_of(charset.characters)
    learner, tokenizer = open_learner(like, len(alphabet))
    if isinstance(start, Path):
        take_weights_of_clip(learner.clip, tokenizer.get_vocab(), start)
    elif start is not None:
        _take_weights(learner, start)
    prompts = Prompts(tokenizer, prompt)
    device = torch.device(device)
    learner.to(device)
    dim = int(learner.clip.config.projection_dim)
    data = _data_identity(images, validation, photos, like, start)
    run = runs.start_or_continue(out, "clip", recipe, charset, dim, data, _former_identity(data))
    batches = ClipBatches(images, photos, prompts, recipe.clip, learner.size, learner.columns, alphabet)
    rows = recipe.clip.validation_rows
    unreadable: set[str] = set()

    def leave_out(lines: Sequence[str]) -> None:
        for line in sorted(set(lines) - unreadable):
            note(f"left out: {line}")
        unreadable.update(lines)

    task = loop.Task(
        model=learner,
        batch=batches,
        loss=lambda batch: learner.loss(batch, recipe.clip.letters_weight, recipe.clip.states_weight),
        notice=lambda batch: leave_out(batch.unreadable),
        validate=lambda model: retrieval(model, validation, prompts, rows, device, leave_out),
        rows=lambda batch: len(batch.images),
        groups=[loop.ParameterGroup(list(learner.parameters()))],
        observers=[observer(track, out)] if track else [],
    )
    before = run.step()
    state = loop.run(out, task, recipe.clip, device)
    learner.load_state_dict(run.weights("best"))
    # Of what is written: the last step need not have been the best.
    metrics = retrieval(learner, validation, prompts, rows, device, leave_out)
    _save(learner, like, out / "clip")
    return TrainClipSummary(
        out=out,
        model=out / "clip",
        rows=len(images),
        computed=(state.step - before) * recipe.clip.batch_size * recipe.clip.accumulate,
        quarantined=images.rejected.total + len(unreadable),
        steps=state.step,
        seconds=time.monotonic() - started,
        metrics=metrics,
    )


@torch.inference_mode()
def retrieval(
    model: torch.nn.Module,
    images: WordImages,
    prompts: Prompts,
    rows: int,
    device: torch.device,
    leave_out: Callable[[Sequence[str]], None],
) -> dict[str, float]:
    """Return how often the prompt nearest to an image is its own, among the prompts of ``rows`` different words.

    Words whose image cannot be read do not count; ``leave_out`` gets the reasons.

    Raises:
        UserError: not one image can be read.
    """
    if not isinstance(model, ClipLearner):
        raise TypeError(f"{type(model).__name__} is not a CLIP that learns")
    model.train(False)
    first = {sample.label.lower(): index for index, sample in reversed(list(enumerate(images.samples)))}
    chosen: list[int] = []
    texts: list[Tensor] = []
    seen: list[Tensor] = []
    every_word = sorted(first.values())
    # Evenly over all of them: crops of several scripts stand one after another.
    wanted = [every_word[i * len(every_word) // rows] for i in range(rows)] if rows < len(every_word) else every_word
    for start in range(0, len(wanted), _BATCH):
        readable, pixels = _pixels(images, wanted[start : start + _BATCH], model.size, leave_out)
        if not readable:
            continue
        chosen += readable
        seen.append(model.encode_images(pixels.to(device))[0])
        texts.append(model.encode_texts(prompts([images.samples[i].label for i in readable]).to(device))[0])
    if not chosen:
        raise UserError("not one validation image can be read", "Check the folder given with --validation")
    similarities = torch.cat(seen) @ torch.cat(texts).T
    right = torch.arange(len(chosen), device=device)
    top1 = (similarities.argmax(1) == right).float().mean().item()
    top5 = (similarities.topk(min(5, len(chosen)), 1).indices == right[:, None]).any(1).float().mean().item()
    return {"score": top1, "top1": top1, "top5": top5, "prompts": float(len(chosen))}


def _pixels(
    images: WordImages, chosen: Sequence[int], size: int, leave_out: Callable[[Sequence[str]], None]
) -> tuple[list[int], Tensor]:
    """Return those of ``chosen`` that can be read, and their pixels, shape (readable, 3, size, size), uint8."""
    readable: dict[int, Tensor] = {}
    for index in chosen:
        try:
            readable[index] = torch.from_numpy(preprocess(images.image(index), size, size))
        except UnreadableImage as error:
            leave_out([str(error)])
    empty = torch.empty(0, 3, size, size, dtype=torch.uint8)
    return list(readable), torch.stack(list(readable.values())) if readable else empty


def open_learner(folder: Path, letters: int) -> tuple[ClipLearner, Any]:
    """Return a learner with new weights of the shape that ``folder`` describes, and the tokenizer there.

    ``letters`` is how many of them it classifies.

    Raises:
        UserError: it is no CLIP, or one that cuts images to a square.
    """
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel

    missing = [name for name in _DESCRIPTIONS if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} has no {missing[0]}", "Give a CLIP's folder as transformers saves it, or `tiny`")
    config: Any = CLIPConfig.from_pretrained(folder, trust_remote_code=False)
    if config.model_type != "clip":
        raise UserError(f"{folder} holds a {config.model_type} model", "Give a CLIP to train one like it")
    pixels = json.loads((folder / IMAGE_PROCESSOR_FILE).read_text(encoding="utf-8"))
    side = config.vision_config.image_size
    if pixels.get("do_center_crop") or pixels.get("size") != {"height": side, "width": side}:
        raise UserError(
            f"{folder} cuts images to a square, and words lose letters",
            f'In {IMAGE_PROCESSOR_FILE}: "do_center_crop": false, "size": {{"height": {side}, "width": {side}}}',
        )
    # On short sequences the fused kernel's backward pass takes as long as all else together.
    config._attn_implementation = "eager"
    weights: Any = CLIPModel
    learner = ClipLearner(weights(config), pixels["image_mean"], pixels["image_std"], letters)
    return learner, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def _take_weights(learner: ClipLearner, start: runs.Run) -> None:
    try:
        found = learner.load_state_dict(start.weights(), strict=False)
    except RuntimeError as error:
        raise UserError(
            f"the weights of {start.folder} are of another shape", "Start from a run of the same --clip"
        ) from error
    # Heads only serve training: a run of an earlier version may lack one, and it starts anew.
    lacking = [name for name in found.missing_keys if name.startswith("clip.")]
    if lacking or found.unexpected_keys:
        wrong = min([*lacking, *found.unexpected_keys])
        raise UserError(f"the weights of {start.folder} do not fit at {wrong}", "Start from a run of the same --clip")
    if found.missing_keys:
        note(f"new: {', '.join(found.missing_keys)}")


def _require_apart(images: WordImages, validation: WordImages) -> None:
    shared = {sample.label.lower() for sample in images.samples} & {
        sample.label.lower() for sample in validation.samples
    }
    if shared:
        raise UserError(
            f"{len(shared)} words are among those to learn and those to validate with, such as {min(shared)!r}",
            "Validate with words that training never sees",
        )


def _data_identity(
    images: WordImages, validation: WordImages, photos: Sequence[Path], like: Path, start: runs.Run | Path | None
) -> dict[str, Any]:
    def fingerprint(lines: list[str]) -> str:
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    return {
        "images": images.identity(),
        "validation": validation.identity(),
        "photos": {"files": len(photos), "sha256": fingerprint([path.name for path in photos])},
        "from": _identity_of_start(start),
        "like": fingerprint([(like / name).read_text(encoding="utf-8") for name in _DESCRIPTIONS]),
    }


def _identity_of_start(start: runs.Run | Path | None) -> list[Any] | None:
    if isinstance(start, Path):
        return [start.name, hashlib.sha256((start / WEIGHTS_FILE).read_bytes()).hexdigest()]
    return None if start is None else [start.folder.name, start.data]


def _former_identity(data: dict[str, Any]) -> dict[str, Any]:
    """Return the identity as earlier versions saved it: validation images stood under another key."""
    return {"held_out" if key == "validation" else key: value for key, value in data.items()}


def _save(learner: ClipLearner, like: Path, folder: Path) -> None:
    """Write the CLIP alone, in half precision: that is below what training leaves undecided, and half the download."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _DESCRIPTIONS:
        shutil.copyfile(like / name, folder / name)
    tensors = {name: tensor.half().contiguous().cpu() for name, tensor in learner.clip.state_dict().items()}
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_tensors(tensors, temporary, {"format": "pt"})
