"""What a batch costs before the decoder sees it: bytes that are moved, and the processor's time, two ways side by side.

widened  states and noise become float32 where they are read, noise is added there, and all of it is moved
stored   dptr: they are moved as they are stored, each state once, and become float32 where the decoder is

Both make the same memory to the last bit, which is checked. Stores are made up: prompts of 3 to 8 own tokens behind a
prefix of 5 (content), or of 72 (full), and crops of 197 tokens for noise. Bytes are those of one batch on its way from
a worker to the training process and on to a GPU. Where there is a GPU, the training process's part is done by it. Then
a loss of this decoder, plain and compiled. Medians; only ratios travel.

Smallest size: --rows 64 --batch 8 --dim 16 --rounds 2 --compile-steps 2 --quick
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from judged import at_least
from numpy.typing import NDArray

from dptr.cache.choices import StatesDtype
from dptr.cache.errors import run_script
from dptr.cache.file_names import PREFIX_FILE
from dptr.cache.row_set import RowSet
from dptr.cache.stores.file_record import FileRecord
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.stores.shards import States, write_shard, write_states
from dptr.trainer.data.noise import NoiseSource
from dptr.trainer.data.noisy_memory import token_memory
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Memory
from dptr.trainer.pretrain import PromptBatch, PromptBatches
from dptr.trainer.training.loader import bytes_of
from dptr.trainer.training.loop import compiled
from dptr.trainer.training.recipe import Recipe
from dptr.trainer.training.settings import NoiseSettings

#: Over all batches; the best counts.
_PASSES = 3
PREFIX, FULL, CROP_TOKENS, CROPS, RATIO = 5, 72, 197, 64, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=at_least(1), default=2048)
    parser.add_argument("--batch", type=at_least(1), default=128)
    parser.add_argument("--dim", type=at_least(1), default=512)
    parser.add_argument("--rounds", type=at_least(1), default=20)
    parser.add_argument(
        "--compile-steps", type=at_least(0), default=30, help="steps that a compiled loss is timed on; 0: none"
    )
    parser.add_argument("--quick", action="store_true", help="do not compile to machine code: only shows that it runs")
    arguments = parser.parse_args()
    print(f"batch {arguments.batch}, dim {arguments.dim}, {torch.get_num_threads()} threads\n")
    print(f"{'':22}{'noise':>6}{'way':>9}{'MB':>8}{'worker ms':>11}{'training ms':>13}")
    with tempfile.TemporaryDirectory() as name:
        for context in ("content", "full"):
            for dtype in ("float16", "int8"):
                store, bank = make_stores(Path(name) / f"{context}-{dtype}", context, dtype, arguments)
                noise = NoiseSource(bank, NoiseSettings(), None)
                for source in (noise, None):
                    compare(f"{context}, {dtype}", store, source, arguments)
        if arguments.compile_steps:
            compare_compiled(store=PromptStore(Path(name) / "content-float16" / "prompts"), arguments=arguments)


def compare(name: str, store: PromptStore, noise: NoiseSource | None, arguments: argparse.Namespace) -> None:
    """Print a line for each way."""
    ways: dict[str, Callable[[NDArray[np.int64], int], object]] = {
        "widened": lambda rows, seed: widened(store, rows, noise, seed),
        "stored": lambda rows, seed: token_memory(store, rows, noise, RATIO, np.random.default_rng(seed)),
    }
    sizes: dict[str, list[int]] = {way: [] for way in ways}
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for round_number in range(arguments.rounds + 1):
        rows = np.random.default_rng(round_number).integers(0, len(store), arguments.batch)
        made = []
        for way, make in ways.items():
            started = time.process_time()
            batch = make(rows, round_number)
            between = time.process_time()
            made.append(batch.to("cpu"))  # type: ignore[attr-defined]
            if round_number:
                seconds[way].append((between - started, time.process_time() - between))
                sizes[way].append(bytes_of(batch))
        if not torch.equal(made[0].tokens, made[1].tokens):
            raise SystemExit("the two ways differ")
    for way in ways:
        worker, training = (1e3 * statistics.median(times) for times in zip(*seconds[way], strict=True))
        size = statistics.median(sizes[way]) / 1e6
        print(f"{name:22}{'yes' if noise else 'no':>6}{way:>9}{size:8.2f}{worker:11.2f}{training:13.2f}", flush=True)


def widened(store: PromptStore, rows: NDArray[np.int64], noise: NoiseSource | None, seed: int) -> Memory:
    """A memory as workers made it before: float32 from the start."""
    states, first = store.states(rows), 1 + len(store.prefix)
    longest = int(states.lengths.max())
    tokens = np.zeros((len(rows), first + longest, store.dim), np.float32)
    tokens[:, 0], tokens[:, 1:first] = states.pooled, store.prefix
    real = np.arange(longest) < states.lengths[:, None]
    tokens[:, first:][real] = states.tokens
    padding = np.zeros(tokens.shape[:2], np.bool_)
    padding[:, first:] = ~real
    memory = torch.from_numpy(tokens)
    if noise is not None:
        drawn = noise.draw(rows, tokens.shape[1], np.random.default_rng(seed)).floating()
        memory.add_(torch.from_numpy(drawn), alpha=RATIO)
    return Memory(memory, torch.from_numpy(padding))


def compare_compiled(store: PromptStore, arguments: argparse.Namespace) -> None:
    """Training steps of a decoder of one layer, plain and compiled; the latter on batches of few shapes."""
    recipe = Recipe().replace("pretrain", batch_size=arguments.batch).replace("decoder", max_label_length=25)
    batches = PromptBatches(store, None, RowSet.of(np.arange(len(store)), len(store)), recipe)
    torch.manual_seed(0)
    decoder = build_decoder(recipe.decoder, len(store.charset.characters), store.dim).train()

    def plain(batch: PromptBatch) -> torch.Tensor:
        return decoder.loss(batch.memory, batch.targets)  # type: ignore[arg-type]

    given = [batches(number).to(torch.device("cpu")) for number in range(arguments.compile_steps)]
    few = [batches(number).padded(26).to(torch.device("cpu")) for number in range(arguments.compile_steps)]
    joined = compiled(plain, backend="eager" if arguments.quick else "inductor")
    ways = {"plain": (plain, given), "plain, few shapes": (plain, few), "compiled": (joined, few)}
    measured: dict[str, float] = {}
    print(f"\n{'loss and gradients':22}{'first s':>10}{'later s':>10}{'to plain':>10}")
    for way, (loss, of_way) in ways.items():
        first, later = train(loss, of_way), min(train(loss, of_way) for _ in range(_PASSES))
        measured[way] = later
        print(f"{way:22}{first:10.2f}{later:10.2f}{measured['plain'] / later:10.2f}", flush=True)
    shapes = {(batch.memory.tokens.shape, batch.targets.inputs.shape) for batch in few}  # type: ignore[union-attr]
    print(f"{len(shapes)} shapes of {len(few)} batches")


def train(loss: Callable[[PromptBatch], torch.Tensor], batches: list[PromptBatch]) -> float:
    """Seconds of the processor for a loss and its gradients over batches: a machine that is shared counts less so."""
    started = time.process_time()
    for batch in batches:
        loss(batch).backward()  # type: ignore[no-untyped-call]
    return time.process_time() - started


def make_stores(
    folder: Path, context: str, dtype: StatesDtype, arguments: argparse.Namespace
) -> tuple[PromptStore, OrpBank]:
    """Random states of rows, prefix and crops."""
    generator = np.random.default_rng(0)
    letters = generator.integers(2, 13, arguments.rows)
    labels = ["".join(generator.choice(list("abcdefgh"), count)) for count in letters]
    lengths = np.full(arguments.rows, FULL) if context == "full" else letters // 2 + 2
    prompts, crops = folder / "prompts", folder / "orp"
    for made in (prompts, crops):
        made.mkdir(parents=True)
    columns = {"label": labels, "label_length": pa.array(letters, pa.int16()), "count": np.ones(len(labels), np.int64)}
    manifest = Manifest("prompts", {"encoder": "made up", "weights": "w", "charset": "abcdefgh"})
    states = States(random(lengths.sum(), arguments.dim), lengths, random(len(labels), arguments.dim))
    manifest.shards.append(write_shard(prompts, 0, pa.table(columns), states, dtype, {}))
    shared = States(random(PREFIX, arguments.dim), np.array([PREFIX]), random(1, arguments.dim))
    write_states(prompts / PREFIX_FILE, shared, "float16")
    manifest.files[PREFIX_FILE] = FileRecord.of(prompts / PREFIX_FILE)
    manifest.save(prompts)
    bank = Manifest("orp", {"encoder": "made up", "weights": "w", "tokens_per_crop": CROP_TOKENS})
    pictures = random(CROPS * CROP_TOKENS, arguments.dim)
    states = States(pictures, np.full(CROPS, CROP_TOKENS), random(CROPS, arguments.dim))
    bank.shards.append(write_shard(crops, 0, pa.table({"id": np.arange(CROPS)}), states, dtype, {}))
    bank.save(crops)
    return PromptStore(prompts), OrpBank(crops)


def random(rows: int, dim: int) -> NDArray[np.float32]:
    return np.random.default_rng(rows).standard_normal((rows, dim)).astype(np.float32)


if __name__ == "__main__":
    run_script(main)
