"""Rows a second of decoder pre-training, three ways side by side in one run.

a  the authors' way: CLIP's text encoder at every step, prompts padded to 77 tokens, labels to 27, one order after
another
b  the same decoder loop, on embeddings from a prompt store, padded to the same 78 tokens
c  dptr: all orders in one pass, nothing longer than the batch needs, batches through the loader

The loader's share is the time that c's loop waits for a batch. The share of the peak is the rate of the products that a
step takes, counted by torch, by the rate of products of large matrices in the same precision and run.

CLIP has the sizes of ViT-B/16's text side and random weights, which cost the same as trained ones. All ways train a
decoder of the same sizes with the same optimiser and take turns; rates are medians, and only ratios travel. (a) and (b)
attend as the authors' modules do, by torch's multi-head attention that also returns its weights.

Smallest size: --quick --rows 60 --batch 4 --rounds 1 --steps 2
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import at_least, save_clip, usable_device
from gpu import now, peak
from numpy.typing import NDArray
from plain_parseq import loss_order_by_order, made_up_words, padded_targets, update
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dptr.cache.errors import run_script
from dptr.cache.progress import set_quiet
from dptr.cache.row_set import RowSet
from dptr.cache.stores.prompts import PromptStore
from dptr.pipeline.clip.loading import Clip, load_clip
from dptr.pipeline.text.embed_text import EmbedTextSettings, embed_text
from dptr.pipeline.text.templates import Template
from dptr.trainer.data.prompt_batches import PromptBatch, PromptBatches
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.parseq import ParseqDecoder
from dptr.trainer.recipe import Recipe, load_recipe
from dptr.trainer.training.loader import load_batches

PROMPT_TOKENS = 77
WAYS = ("a authors", "b store", "c dptr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=Path, help="a word list; by default words are made up from syllables")
    parser.add_argument("--rows", type=at_least(1), default=2000, help="how many words")
    parser.add_argument("--batch", type=at_least(1), default=32)
    parser.add_argument("--rounds", type=at_least(1), default=3)
    parser.add_argument("--steps", type=at_least(1), default=6, help="steps of c in a round; a and b take one")
    parser.add_argument("--workers", type=at_least(0), default=0)
    parser.add_argument("--device", type=usable_device, default="cpu")
    parser.add_argument("--quick", action="store_true", help="a small decoder and CLIP: only shows that it runs")
    arguments = parser.parse_args()
    set_quiet(True)
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    words = read_words(arguments) if arguments.words else made_up_words(arguments.rows)
    (folder / "words.txt").write_text("\n".join(words), encoding="utf-8")
    save_clip(folder / "clip", *([] if arguments.quick else ["text"]))
    settings = EmbedTextSettings(clip=str(folder / "clip"), device=arguments.device)
    summary = embed_text([str(folder / "words.txt")], folder / "prompts", settings)
    store = PromptStore(folder / "prompts")
    sizes = ["decoder.dim=64", "decoder.heads=2", "decoder.layers=2"] if arguments.quick else []
    recipe = load_recipe("paper", [f"pretrain.batch_size={arguments.batch}", *sizes])
    tokens = store.embeddings(np.arange(len(store))).lengths.mean() + len(store.prefix) + 1
    print(
        f"{len(store):,} words of {store.label_lengths.mean():.1f} characters, {tokens:.1f} memory tokens; decoder "
        f"{recipe.decoder.layers} x {recipe.decoder.dim}, {recipe.decoder.permutations} orders, batch "
        f"{arguments.batch}, {arguments.device}, {torch.get_num_threads()} threads; embedding the words once took "
        f"{summary.seconds:.1f} s\n\n{'':14}{'rows/s':>10}{'to a':>8}{'to b':>8}{'loader':>9}{'of peak':>9}"
    )
    rates: dict[str, dict[str, float]] = {}
    for precision in ("fp32", "bf16"):
        clip = load_clip(str(folder / "clip"), "fp32", arguments.device)
        bench = Bench(arguments, store, clip, recipe, precision)
        rates[precision] = bench.rates()
        most = peak(torch.device(arguments.device), precision)
        share_of_peak = bench.step_flops() / arguments.batch / most
        for way, rate in rates[precision].items():
            to_a, to_b = (rate / rates[precision][other] for other in WAYS[:2])
            ours = f"{bench.loader_share:9.2%}{share_of_peak * rate:9.1%}" if way == WAYS[2] else ""
            print(f"{precision} {way:13}{rate:6.1f}{to_a:8.1f}{to_b:8.1f}{ours}")
        print(f"{precision} peak, measured by products of matrices: {most / 1e12:.2f} TFLOP/s")
    print(f"\nc in bf16 to a in fp32: {rates['bf16'][WAYS[2]] / rates['fp32'][WAYS[0]]:.1f}")


def authors_memory(clip: Clip, labels: list[str], device: torch.device) -> Tensor:
    """[pooled; all 77 embeddings] from CLIP, as the authors make it at every step: (labels, 78, dim)."""
    prompts = [Template().prompt(label) for label in labels]
    encoded = clip.tokenizer(
        prompts, padding="max_length", max_length=PROMPT_TOKENS, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = clip.model.text_model(input_ids=encoded["input_ids"].to(device))
        pooled = clip.model.text_projection(output.pooler_output)
    return torch.cat([pooled[:, None], output.last_hidden_state], dim=1)


class Bench:
    """The three ways at one precision, each with a decoder and an optimiser of its own."""

    def __init__(
        self, arguments: argparse.Namespace, store: PromptStore, clip: Clip, recipe: Recipe, precision: str
    ) -> None:
        self.arguments, self.store, self.clip, self.recipe = arguments, store, clip, recipe
        self.device, self.bf16 = torch.device(arguments.device), precision == "bf16"
        self.batches = PromptBatches(store, None, RowSet.of(np.arange(len(store)), len(store)), recipe)
        self.order = np.random.default_rng(0).permutation(len(store))
        self.number = 0
        self.trained = {way: self.made_decoder() for way in WAYS}
        self.loader_share = 0.0

    def made_decoder(self) -> tuple[ParseqDecoder, torch.optim.Optimizer]:
        """An untrained decoder, the same one each time it is asked for, and its optimiser."""
        torch.manual_seed(0)
        characters = len(self.store.charset.characters)
        decoder = build_decoder(self.recipe.decoder, characters, self.store.dim).to(self.device).train()
        if not isinstance(decoder, ParseqDecoder):
            raise TypeError("the recipe's decoder is not parseq")
        return decoder, torch.optim.AdamW(decoder.parameters(), 1e-4, fused=True)

    def rates(self) -> dict[str, float]:
        """Rows a second of each way; every way warms up once, then they take turns."""
        measured: dict[str, list[float]] = {way: [] for way in WAYS}
        shares: list[float] = []
        turns: dict[str, Callable[[], float]] = {
            WAYS[0]: lambda: self.timed(WAYS[0], [self.rows()], self.memory_from_clip),
            WAYS[1]: lambda: self.timed(WAYS[1], [self.rows()], self.stored_memory),
            WAYS[2]: lambda: self.ours(shares),
        }
        for round_number in range(self.arguments.rounds + 1):
            for way, turn in turns.items():
                rate = turn()
                if round_number > 0:
                    measured[way].append(rate)
        self.loader_share = statistics.median(shares[1:])
        return {way: statistics.median(values) for way, values in measured.items()}

    def rows(self) -> NDArray[np.int64]:
        """The next rows in an order independent of lengths."""
        self.number += 1
        positions = np.arange(self.number * self.arguments.batch, (self.number + 1) * self.arguments.batch)
        chosen: NDArray[np.int64] = self.order[positions % len(self.order)]
        return chosen

    def timed(
        self, way: str, batches: list[NDArray[np.int64]], memory: Callable[[list[str], NDArray[np.int64]], Tensor]
    ) -> float:
        """Train with one order after another over labels padded to the longest possible."""
        decoder, optimizer = self.trained[way]
        started = now(self.device)
        for rows in batches:
            labels = self.store.labels_of(rows)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = loss_order_by_order(
                    decoder,
                    memory(labels, rows),
                    padded_targets(labels, self.store.charset),
                )
            update(decoder, optimizer, [loss])
        return sum(len(rows) for rows in batches) / (now(self.device) - started)

    def memory_from_clip(self, labels: list[str], rows: NDArray[np.int64]) -> Tensor:
        """What CLIP makes of the labels anew."""
        return authors_memory(self.clip, labels, self.device)

    def stored_memory(self, labels: list[str], rows: NDArray[np.int64]) -> Tensor:
        """The same shape from the store, zeros for what it does not keep."""
        embeddings = self.store.embeddings(rows)
        tokens = np.zeros((len(rows), 1 + PROMPT_TOKENS, self.store.dim), np.float32)
        ends = np.cumsum(embeddings.lengths)
        for row, (end, length) in enumerate(zip(ends, embeddings.lengths, strict=True)):
            tokens[row, : length + 1] = np.concatenate(
                [embeddings.pooled[row][None], embeddings.tokens[end - length : end]]
            )
        return torch.from_numpy(tokens).to(self.device)

    def ours(self, shares: list[float]) -> float:
        """Train as ``dptr pretrain`` does, batches through the loader."""
        first, self.number = self.number, self.number + self.arguments.steps
        waited, rows, started = 0.0, 0, now(self.device)
        batches = load_batches(self.batches, range(first, self.number), self.arguments.workers)
        for _ in range(self.arguments.steps):
            waiting = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - waiting
            rows += self.step(batch)
        seconds = now(self.device) - started
        shares.append(waited / seconds)
        return rows / seconds

    def step(self, batch: PromptBatch) -> int:
        """One training step of c; returns its rows."""
        decoder, optimizer = self.trained[WAYS[2]]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = decoder.loss(batch.memory.to(self.device), batch.targets.to(self.device))
        update(decoder, optimizer, [loss])
        return len(batch.targets.inputs)

    def step_flops(self) -> float:
        """Floating-point operations of one step of c, counted by torch."""
        with FlopCounterMode(display=False) as counter:
            self.step(self.batches(0))
        return float(counter.get_total_flops())


def read_words(arguments: argparse.Namespace) -> list[str]:
    words = dict.fromkeys(arguments.words.read_text(encoding="utf-8").split())
    chosen = np.random.default_rng(0).permutation(np.array(list(words)))
    return [str(word) for word in chosen[: arguments.rows]]


if __name__ == "__main__":
    run_script(main)
