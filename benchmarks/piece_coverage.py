"""Learning curves of a decoder with and without words made up so that it meets each of the tokenizer's pieces.

One prompt store holds a word list and what `--cover-pieces` adds to it. Two decoders, the same but for their rows,
learn for as many steps: one from the list alone, one from both. Both read the same held-out words of two kinds: words
of the list, and made-up words, which hold every piece alike. The curves come out as Markdown tables; --out keeps the
rows.

--vocabulary takes CLIP's published merges (bpe_simple_vocab_16e6.txt.gz) and a small text tower of random weights: the
spelling of 49,408 pieces is learnt, not what a trained CLIP would say of them.

Smallest size: --words FEW_WORDS --cover 2 --steps 4 --every 2 --seeds 1 --batch 8 --dim 32 --held-out 20 --out ROWS
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from judged import at_least, usable_device, write_rows
from numpy.typing import NDArray
from scipy import stats

from dptr.cache.errors import run_script
from dptr.cache.progress import set_quiet
from dptr.cache.row_set import RowSet
from dptr.cache.stores.made_up_rows import MADE_UP
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.validation import validation_position
from dptr.pipeline.clip.bundled import BUNDLED
from dptr.pipeline.text.corpus import CorpusSettings
from dptr.pipeline.text.embed_text import EmbedTextSettings, embed_text
from dptr.trainer.metrics import score
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.pretrain import PromptBatches, read_prompts
from dptr.trainer.training.recipe import Recipe, load_recipe
from dptr.trainer.training.schedule import rate_factor

KINDS = ("words of the list", "made-up words")
WAYS = ("without", "with")
Row = dict[str, Any]
HELD_OUT_SHARE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=Path, required=True, help="a word list")
    parser.add_argument("--cover", type=at_least(1), default=20, help="prompts that each piece is to stand in")
    parser.add_argument("--vocabulary", type=Path, help="CLIP's published merges, instead of the bundled CLIP")
    parser.add_argument("--steps", type=at_least(1), default=600)
    parser.add_argument("--every", type=at_least(1), default=100, help="steps between two points of the curve")
    parser.add_argument("--seeds", type=at_least(1), default=3)
    parser.add_argument("--batch", type=at_least(1), default=64)
    parser.add_argument("--dim", type=at_least(1), default=128, help="of the decoder")
    parser.add_argument("--held-out", type=at_least(1), default=300, help="words of each kind that are read, at most")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--out", type=Path, help="a JSON Lines file for the rows")
    parser.add_argument("--device", type=usable_device, default="cpu")
    arguments = parser.parse_args()
    set_quiet(True)
    with tempfile.TemporaryDirectory() as scratch:
        clip = write_clip(Path(scratch) / "clip", arguments.vocabulary) if arguments.vocabulary else BUNDLED
        settings = EmbedTextSettings(
            CorpusSettings(charset="36", case="lower"),
            clip=str(clip),
            cover_pieces=arguments.cover,
            device=arguments.device,
        )
        embed_text([str(arguments.words)], Path(scratch) / "prompts", settings)
        measure(PromptStore(Path(scratch) / "prompts"), arguments)


def measure(store: PromptStore, arguments: argparse.Namespace) -> None:
    """Train both ways with every seed, and print the curves."""
    is_made_up = np.asarray(pc.equal(store._column("source", store.labels.type), MADE_UP))
    place = np.array([validation_position(label, 0) for label in store.labels.to_pylist()])
    held_out = place < HELD_OUT_SHARE
    rows = {"without": np.flatnonzero(~held_out & ~is_made_up), "with": np.flatnonzero(~held_out)}
    tests = [np.flatnonzero(held_out & chosen)[: arguments.held_out] for chosen in (~is_made_up, is_made_up)]
    print(
        f"{len(rows['without']):,} words and {np.count_nonzero(is_made_up & ~held_out):,} made up so that each piece "
        f"stands in {arguments.cover} prompts; {len(tests[0])} and {len(tests[1])} held out; decoder nrtr 2 x "
        f"{arguments.dim}, batches of {arguments.batch}, {arguments.seeds} seeds\n"
    )
    rows_of_curves: list[Row] = []
    for seed in range(arguments.seeds):
        for way in WAYS:
            rows_of_curves += curve(store, way, rows[way], tests, seed, arguments)
            if arguments.out:
                write_rows(arguments.out, rows_of_curves)
    for kind in KINDS:
        print(f"\n{kind}\n\n| steps | without, % | with, % | points, over seeds |\n| --- | --- | --- | --- |")
        for step in range(arguments.every, arguments.steps + 1, arguments.every):
            print(line_of_table(rows_of_curves, kind, step))


def line_of_table(rows: list[Row], kind: str, step: int) -> str:
    """Return each way's mean accuracy at a step, and the 95 % interval of their difference by the paired t."""
    of_way = {
        way: [row for row in rows if row["arm"] == f"{way}, {step} steps" and row["test"] == kind] for way in WAYS
    }
    without, with_made_up = (np.array([100 * row["accuracy"] for row in of_way[way]]) for way in WAYS)
    more = with_made_up - without
    interval = ""
    if len(more) > 1 and np.ptp(more):
        low, high = stats.ttest_rel(with_made_up, without).confidence_interval(0.95)
        interval = f" ({low:+.1f} to {high:+.1f})"
    return f"| {step:,} | {without.mean():.1f} | {with_made_up.mean():.1f} | {more.mean():+.1f}{interval} |"


def curve(
    store: PromptStore,
    way: str,
    rows: NDArray[np.int64],
    tests: list[NDArray[np.int64]],
    seed: int,
    arguments: argparse.Namespace,
) -> Iterator[Row]:
    """Train on ``rows``; yield what is read of each test's words at every point."""
    recipe, seconds = recipe_of(arguments, seed), 0.0
    device = torch.device(arguments.device)
    torch.manual_seed(seed)
    decoder = build_decoder(recipe.decoder, len(store.charset.characters), store.dim).to(device)
    optimizer = torch.optim.AdamW(decoder.parameters(), recipe.pretrain.learning_rate, weight_decay=0, fused=True)
    batches = PromptBatches(store, None, RowSet.of(rows, len(store)), recipe)
    for step in range(1, arguments.steps + 1):
        started = time.process_time()
        decoder.train()
        for group in optimizer.param_groups:
            group["lr"] = recipe.pretrain.learning_rate * rate_factor(step - 1, recipe.pretrain)
        batch = batches(step - 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss = decoder.loss(batch.memory.to(device), batch.targets.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), recipe.pretrain.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds += time.process_time() - started
        if step % arguments.every:
            continue
        point = {"arm": f"{way}, {step} steps", "seed": seed, "steps": step, "seconds": seconds}
        for kind, test in zip(KINDS, tests, strict=True):
            labels = store.labels_of(test)
            texts = read_prompts(decoder, store, test, None, 0.0, recipe.memory, device)
            read = score(labels, texts)
            figures = {"words": read.words, "accuracy": read.accuracy, "one_minus_ned": read.one_minus_ned}
            right = [label == text for label, text in zip(labels, texts, strict=True)]
            yield {**point, **figures, "test": kind, "images": labels, "right": right}


def recipe_of(arguments: argparse.Namespace, seed: int) -> Recipe:
    sizes = {"kind": "nrtr", "dim": arguments.dim, "heads": 4, "layers": 2, "feed_forward": 4 * arguments.dim}
    recipe = load_recipe("tiny").replace("decoder", **sizes).replace("noise", ratio=0.0)
    # A point of the curve is what was learnt by then, not what a schedule kept for the end.
    steady = {"schedule": "constant", "steps": arguments.steps, "batch_size": arguments.batch, "seed": seed}
    return recipe.replace("pretrain", **steady)


def write_clip(folder: Path, vocabulary: Path) -> Path:
    """Write a CLIP with CLIP's own pieces, and as small otherwise as the bundled one; its weights are random."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = gzip.decompress(vocabulary.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    merges: Any = [(first, second) for first, second in (line.split() for line in lines)]
    symbols = list(bytes_to_unicode().values())  # type: ignore[no-untyped-call]
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    numbers = {token: number for number, token in enumerate(tokens)}
    folder.mkdir()
    CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=77).save_pretrained(folder)
    config = CLIPConfig.from_pretrained(BUNDLED)
    ends = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    for key, value in {"vocab_size": len(tokens), "max_position_embeddings": 77, **ends}.items():
        setattr(config.text_config, key, value)
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_bytes((BUNDLED / "preprocessor_config.json").read_bytes())
    return folder


if __name__ == "__main__":
    run_script(main)
