"""Validation labels read from their text states by finished pre-training runs, clean and under ever more ORP noise.

Smallest size: PRETRAINED --workspace WORKSPACE
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from dptr.cache.errors import run_script
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.trainer.data.held_out import split_rows
from dptr.trainer.data.noise import NoiseSource
from dptr.trainer.metrics import score
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.pretrain import read_prompts
from dptr.trainer.training.runs import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="pre-training runs")
    parser.add_argument("--workspace", type=Path, default=Path("dptr_data"), help="where their stores are")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 0.1, 1.0])
    arguments = parser.parse_args()
    store, bank = PromptStore(arguments.workspace / "prompts"), OrpBank(arguments.workspace / "orp")
    print(f"{'run':28}{'trained at':>11}" + "".join(f"{f'noise {ratio:g}':>12}" for ratio in arguments.ratios))
    for folder in arguments.runs:
        run = Run.load(folder)
        decoder = build_decoder(run.recipe.decoder, len(run.charset.characters), run.memory_dim, run.recipe.memory)
        decoder.load_state_dict(run.weights())
        rows, _ = split_rows(store, run.recipe, run.split)
        truths = [label.lower() for label in store.labels_of(rows)]
        noise = NoiseSource(bank, run.recipe.noise, None)
        line = f"{folder.name:28}{run.recipe.noise.ratio:11g}"
        for ratio in arguments.ratios:
            texts = read_prompts(
                decoder, store, rows, noise, ratio, run.recipe.memory, torch.device("cpu"), run.charset
            )
            line += f"{score(truths, [text.lower() for text in texts]).accuracy:12.1%}"
        print(line, flush=True)


if __name__ == "__main__":
    run_script(main)
