"""Sections of a report on a pre-trained decoder: what it reads from text states, and the noise in them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.trainer.data.held_out import split_rows
from dptr.trainer.data.noise import NoiseSource
from dptr.trainer.data.noisy_memory import text_memory
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.pretrain import read_prompts
from dptr.trainer.report.charts import scatter
from dptr.trainer.report.mistakes import accuracy_by_length, confusions
from dptr.trainer.report.page import Cell, Chart, Section, Table, text_row
from dptr.trainer.training.runs import Run

_EXAMPLES = 24
_TOKENS_SHOWN = 400


def prompt_sections(run: Run, store: PromptStore, bank: OrpBank | None) -> list[Section]:
    """Read the validation prompts, clean and with noise, and draw the noise."""
    decoder = build_decoder(run.recipe.decoder, len(run.charset.characters), run.memory_dim, run.recipe.memory)
    decoder.load_state_dict(run.weights())
    rows = np.random.default_rng(0).permutation(split_rows(store, run.recipe)[0])
    noise = None if bank is None else NoiseSource(bank, run.recipe.replace("noise", draw="random").noise, None)
    ratios = [0.0] if noise is None else [0.0, run.recipe.noise.ratio, 1.0]
    kind, cpu = run.recipe.memory, torch.device("cpu")
    readings = [read_prompts(decoder, store, rows, noise, ratio, kind, cpu, run.charset) for ratio in ratios]
    labels = store.labels_of(rows)
    folded, clean = [label.lower() for label in labels], [text.lower() for text in readings[0]]
    examples = [
        [Cell(label), *(Cell(text, wrong=text.lower() != label.lower()) for text in texts)]
        for label, *texts in list(zip(labels, *readings, strict=True))[:_EXAMPLES]
    ]
    sections = [
        Section(
            "What the decoder reads",
            f"{len(labels):,} validation labels, read from their text states; case aside, which CLIP does not see. "
            "Mistakes are marked in the table.",
            [accuracy_by_length(folded, clean, run.charset.units)],
            [
                Table(["label", *(f"noise {ratio:g}" for ratio in ratios)], examples),
                confusions(folded, clean, run.charset.units),
            ],
        )
    ]
    if noise is not None and run.recipe.memory.kind != "pooled":
        sections.append(_noise(store, rows[:_EXAMPLES], noise, run.recipe.noise.ratio))
    return sections


def _noise(store: PromptStore, rows: NDArray[np.int64], noise: NoiseSource, ratio: float) -> Section:
    """Text states, the same with noise, and the noise itself, in the plane that spreads them most."""
    memory = text_memory(store, rows)
    drawn = noise.draw(rows, memory.tokens, np.random.default_rng(0)).widened()
    tokens, kept = memory.to("cpu").tokens.numpy(), memory.to("cpu").real.numpy()
    # What all prompts of a template share does not differ.
    kept &= np.arange(kept.shape[1]) > store.prefix_lengths_of(rows)[:, None]
    text, perturbation = tokens[kept][:_TOKENS_SHOWN], drawn[kept][:_TOKENS_SHOWN]
    groups = {"text states": text, f"with {ratio:g} × noise": text + ratio * perturbation, "image states": perturbation}
    everything = np.concatenate(list(groups.values()))
    centre = everything.mean(0)
    _, _, axes = np.linalg.svd(everything - centre, full_matrices=False)
    placed = {name: (values - centre) @ axes[:2].T for name, values in groups.items()}
    lengths = [float(np.linalg.norm(values, axis=1).mean()) for values in (text, ratio * perturbation)]
    drawing = scatter("states under noise", placed, "first principal component", "second principal component")
    measured = [
        text_row("mean length of a text state", f"{lengths[0]:.1f}"),
        text_row("of the noise added to it", f"{lengths[1]:.1f}"),
    ]
    return Section(
        "The noise",
        f"One point a token of {len(rows)} prompts, in the plane that spreads all three groups most.",
        [Chart(drawing, "Text states, perturbed states and image states")],
        [Table([], measured)],
    )
