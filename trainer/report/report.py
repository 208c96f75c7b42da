"""A run as one self-contained HTML page: its curves, what it reads, and, by stage, the noise or where it looks."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dptr.cache.errors import UserError
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.word_images.dataset import UnreadableImage, WordImages, preprocess
from dptr.trainer.data.noisy_memory import NoiseSource, text_memory
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.fmu import FeatureMergeUnit
from dptr.trainer.model.recognizer import Recognizer, load_recognizer
from dptr.trainer.pretrain import held_out_rows, read_prompts
from dptr.trainer.report import page as draw
from dptr.trainer.training.loop import METRICS_FILE
from dptr.trainer.training.runs import Run

FILE_NAME = "report.html"
_EXAMPLES = 24
_TOKENS_SHOWN = 400
Section = tuple[str, str]
_SECTIONS = {
    "pretrain": ("decoder", "noise", "pretrain"),
    "finetune": ("encoder", "fmu", "decoder", "finetune"),
    "clip": ("clip",),
}


@dataclass(frozen=True)
class ReportSummary:
    """What was written: the page, and how many sections it has."""

    out: Path
    sections: int
    seconds: float


def report(
    run: Run,
    out: Path,
    crops: WordImages | None = None,
    stores: tuple[PromptStore, OrpBank | None] | None = None,
) -> ReportSummary:
    """Write the report of ``run``.

    Args:
        run: a run with a checkpoint. out: the file to write.
        crops: labelled word images to read, for a fine-tuning run.
        stores: what a pre-training run was trained on; without it the page has no readings and no noise.

    Raises:
        UserError: the run has not trained far enough, or crops are given for a decoder that cannot see.
    """
    started = time.monotonic()
    if crops is not None:
        run.require_recogniser()
    if not (run.folder / METRICS_FILE).is_file():
        raise UserError(f"{run.folder} has no metrics yet", "Let it train further")
    sections = [("The run", _facts(run)), ("Training", _curves(run))]
    if run.kind == "pretrain" and stores is not None:
        sections += _pretrained(run, *stores)
    if run.kind == "finetune" and crops is not None:
        sections += _finetuned(load_recognizer(run), crops)
    with atomic_path(out) as temporary:
        temporary.write_text(draw.page(f"dptr: {run.folder.name}", sections), encoding="utf-8")
    return ReportSummary(out, len(sections), time.monotonic() - started)


def _facts(run: Run) -> str:
    recipe = dataclasses.asdict(run.recipe)
    rows = [
        ["stage", run.kind],
        ["steps", f"{run.step():,}"],
        ["charset", f"{len(run.charset.characters)} characters"],
        ["memory", f"{run.memory_dim} wide"],
        *(
            [name, ", ".join(f"{key} {value}" for key, value in recipe[name].items() if value != "")]
            for name in _SECTIONS[run.kind]
        ),
    ]
    return draw.table(["", ""], rows)


def _curves(run: Run) -> str:
    lines = [json.loads(line) for line in (run.folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()]

    def points(key: str) -> list[tuple[float, float]]:
        return [(line["step"], line[key]) for line in lines if key in line]

    shares = sorted(
        {key for line in lines for key in line if key.startswith(("validation_accuracy", "validation_top"))}
    )
    charts = [draw.line_chart("loss by step", {"loss": points("loss")}, logarithmic=True)]
    if shares:
        named = {key.removeprefix("validation_").replace("_", " "): points(key) for key in shares}
        charts.append(draw.line_chart("validation by step", named))
    return f'<div class="charts">{"".join(charts)}</div>'


def _pretrained(run: Run, store: PromptStore, bank: OrpBank | None) -> list[Section]:
    decoder = build_decoder(run.recipe.decoder, len(run.charset.characters), run.memory_dim)
    decoder.load_state_dict(run.weights())
    rows = np.random.default_rng(0).permutation(held_out_rows(store, run.recipe)[0])[:_EXAMPLES]
    noise = None if bank is None else NoiseSource(bank, dataclasses.replace(run.recipe.noise, draw="random"), None)
    ratios = [0.0] if noise is None else [0.0, run.recipe.noise.ratio, 1.0]
    readings = [read_prompts(decoder, store, rows, noise, ratio, torch.device("cpu")) for ratio in ratios]
    labels = store.labels_of(rows)
    cells = [
        [label, *(text if text.lower() == label.lower() else draw.wrong(text) for text in texts)]
        for label, *texts in zip(labels, *readings, strict=True)
    ]
    explained = draw.note("Held-out labels, read from their text states; marked where they differ, case aside.")
    head = ["label", *(f"noise {ratio:g}" for ratio in ratios)]
    sections = [("What the decoder reads", explained + draw.table(head, cells))]
    if noise is not None:
        sections.append(("The noise", _noise_picture(store, rows, noise, run.recipe.noise.ratio)))
    return sections


def _noise_picture(store: PromptStore, rows: NDArray[np.int64], noise: NoiseSource, ratio: float) -> str:
    """Text states, the same with noise, and the noise itself, in the plane that spreads them most."""
    tokens, padding = text_memory(store, rows)
    drawn = noise.draw(rows, tokens.shape[1], np.random.default_rng(0)).astype(np.float32)
    kept = ~padding
    kept[:, : 1 + len(store.prefix)] = False  # what all prompts share says nothing
    text, perturbation = tokens[kept][:_TOKENS_SHOWN], drawn[kept][:_TOKENS_SHOWN]
    groups = {"text states": text, f"with {ratio:g} x noise": text + ratio * perturbation, "image states": perturbation}
    everything = np.concatenate(list(groups.values()))
    centre = everything.mean(0)
    _, _, axes = np.linalg.svd(everything - centre, full_matrices=False)
    placed = {
        name: [(float(x), float(y)) for x, y in (values - centre) @ axes[:2].T] for name, values in groups.items()
    }
    lengths = [float(np.linalg.norm(values, axis=1).mean()) for values in (text, ratio * perturbation)]
    said = f"Mean length of a text state: {lengths[0]:.1f}; of the noise added to it: {lengths[1]:.1f}."
    return draw.scatter("two principal components", placed) + draw.note(said)


def _finetuned(recognizer: Recognizer, crops: WordImages) -> list[Section]:
    chosen = np.random.default_rng(0).permutation(len(crops)).tolist()
    rows: list[list[str]] = []
    for index in chosen:
        if len(rows) == _EXAMPLES:
            break
        try:
            image = crops.image(index)
        except UnreadableImage:
            continue  # `dptr evaluate` counts these; a page of examples takes another
        rows.append(_example(recognizer, image, crops.samples[index].label))
    text = (
        "The strip shows where each query of the Feature Merge Unit looks: a line a query, left to right as the image."
    )
    explained = draw.note(text if isinstance(recognizer.fmu, FeatureMergeUnit) else "This run merges nothing.")
    return [
        ("What the recogniser reads", explained + draw.table(["image", "looks", "truth", "read", "confidence"], rows))
    ]


@torch.inference_mode()
def _example(recognizer: Recognizer, image: Image.Image, truth: str) -> list[str]:
    pixels = torch.from_numpy(preprocess(image, *recognizer.image_size))[None]
    reading = recognizer.read(pixels)[0]
    looks = "" if not isinstance(recognizer.fmu, FeatureMergeUnit) else draw.picture(_strip(recognizer, pixels), 52)
    text = reading.text if reading.text == truth else draw.wrong(reading.text)
    return [draw.picture(image, 40), looks, truth, text, f"{reading.confidence:.2f}"]


def _strip(recognizer: Recognizer, pixels: torch.Tensor) -> Image.Image:
    """Attention of queries over columns, summed over rows of the grid, each query scaled to its own maximum."""
    if not isinstance(recognizer.fmu, FeatureMergeUnit):
        raise TypeError("no Feature Merge Unit")
    weights = recognizer.fmu.attention_map(recognizer.tokens(pixels))[0]
    columns = weights.view(len(weights), *recognizer.encoder.grid).sum(1)
    shares = (columns / columns.amax(1, keepdim=True)).numpy()
    return Image.fromarray(np.uint8(255 - 255 * shares)).resize((columns.shape[1] * 5, len(weights) * 2), 0)


def matching_stores(run: Run, folders: Sequence[Path]) -> tuple[PromptStore, OrpBank | None] | None:
    """Open the prompt store and ORP bank that ``run`` was trained on, or None when they are no longer these."""
    prompts, orp = folders
    if not (prompts / "manifest.json").is_file():
        return None
    store = PromptStore(prompts)
    known: dict[str, Any] = run.data
    if store.manifest.fingerprint() != known.get("prompts"):
        return None
    if "orp" not in known:
        return store, None
    bank = OrpBank(orp) if (orp / "manifest.json").is_file() else None
    return (store, bank) if bank is not None and bank.manifest.fingerprint() == known["orp"] else None
