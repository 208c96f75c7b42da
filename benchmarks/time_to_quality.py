"""Processor seconds until a decoder reads 90 % of held-out words from their text embeddings: the authors' way, dptr's.

authors  their decoder (recipe `paper`: six layers of 512, six orders), one order after another, labels padded to 27,
         CLIP's text encoder at every step over prompts padded to 77
dptr     the recipe named, on embeddings from a prompt store; the seconds of embedding count

The authors' losses are differentiated order by order: that bounds the memory at one order's graph and leaves the
gradient as it is. Both decoders are the same module; only the arrangement of its work differs. With --way each way can
have a process of its own.

Both learn the same words from the same CLIP, with as many rows a step and a rate that stays after its warm-up; neither
gets noise. The clock stands still while held-out words are read. --out keeps each point of the curves as soon as it is
there. By default CLIP has the sizes of ViT-B/16's text side and random weights, which cost the same as
trained ones; what is learnt is to spell its embeddings.

Smallest size: --quick --rows 60 --held-out 10 --batch 4 --limit 0.2 --every 1 --out ROWS
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import at_least, made_up_words, save_clip, usable_device
from numpy.typing import NDArray
from torch import Tensor, nn

from dptr.cache.errors import run_script
from dptr.cache.progress import set_quiet
from dptr.cache.row_set import RowSet
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.text.charset import Charset
from dptr.pipeline.clip.loading import Clip, load_clip
from dptr.pipeline.text.corpus import CorpusSettings
from dptr.pipeline.text.embed_text import EmbedTextSettings, embed_text
from dptr.pipeline.text.templates import Template
from dptr.trainer.data.prompt_batches import PromptBatches
from dptr.trainer.metrics import score
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Decoder, Memory, Targets
from dptr.trainer.model.decoders.parseq import ParseqDecoder, TwoStreamLayer, attention_masks, draw_permutations
from dptr.trainer.model.layers import Attention
from dptr.trainer.pretrain import decode_texts, read_prompts
from dptr.trainer.recipe import Recipe, load_recipe
from dptr.trainer.training.checkpoint import MovingAverage

#: The authors' rate for 768 rows a step, which they scale with the batch; and steps until it is reached.
AUTHORS_RATE, AUTHORS_BATCH, WARMUP = 1.485e-3, 768, 50
#: What the authors pad to: tokens of a prompt, characters of a label.
PROMPT_TOKENS, LABEL_LENGTH = 77, 25

#: Accuracy at one point of a curve.
Point = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", help="bundled name, directory or hub id, instead of random weights")
    parser.add_argument("--recipe", default="tiny", help="of dptr's way")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="section.key=value of that recipe")
    parser.add_argument("--rows", type=at_least(1), default=20_000, help="how many words")
    parser.add_argument("--held-out", type=at_least(1), default=200, help="of them never trained on")
    parser.add_argument("--batch", type=at_least(1), default=64)
    parser.add_argument("--way", choices=("dptr", "authors"), help="this one alone; by default both, one after another")
    parser.add_argument("--goal", type=float, default=0.9, help="share of held-out words to be read")
    parser.add_argument("--limit", type=float, default=3600, help="processor seconds of training for each way")
    parser.add_argument("--every", type=float, default=60, help="least seconds between points of the curve")
    parser.add_argument("--out", type=Path, help="a JSON Lines file for the points of the curves")
    parser.add_argument("--quick", action="store_true", help="a small CLIP and decoder: only shows that it runs")
    parser.add_argument("--device", type=usable_device, default="cpu")
    arguments = parser.parse_args()
    set_quiet(True)
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    words = made_up_words(arguments.rows)
    (folder / "words.txt").write_text("\n".join(words), encoding="utf-8")
    name = arguments.clip or str(folder / "clip")
    if not arguments.clip:
        save_clip(folder / "clip", *([] if arguments.quick else ["text"]))
    settings = EmbedTextSettings(CorpusSettings(charset="36", case="lower"), name, device=arguments.device)
    clock = stopwatch(arguments)
    started = clock()
    embed_text([str(folder / "words.txt")], folder / "prompts", settings)
    embedding = clock() - started
    store, clip = PromptStore(folder / "prompts"), load_clip(name, "fp32", arguments.device)
    rows = np.random.default_rng(0).permutation(len(store))
    held_out, training = np.sort(rows[: arguments.held_out]), np.sort(rows[arguments.held_out :])
    print(
        f"{len(training):,} words to learn, {len(held_out)} held out; batches of {arguments.batch}, "
        f"{arguments.device}, {torch.get_num_threads()} threads; embedding took {embedding:.1f} s"
    )
    reached: dict[str, float | None] = {}
    points: list[Point] = []
    for name_of_way in (arguments.way,) if arguments.way else ("dptr", "authors"):
        way: Way
        if name_of_way == "dptr":
            way, before = Dptr(store, training, arguments), embedding
        else:
            way, before = Authors(store, clip, training, arguments), 0.0
        print(f"\n{name_of_way:9}{'seconds':>9}{'rows':>10}{'read':>8}", flush=True)

        def keep(point: Point, way: str = name_of_way) -> None:
            points.append({**point, "arm": f"{way}, {point['seconds']:,.0f} s"})
            if arguments.out:
                arguments.out.write_text("".join(f"{json.dumps(row)}\n" for row in points), encoding="utf-8")

        reached[name_of_way] = time_to_goal(way, held_out, before, arguments, keep)
        print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB of memory so far")
    if arguments.way:
        return
    ours, theirs = reached["dptr"], reached["authors"]
    if ours is None:
        print(f"\ndptr did not read {arguments.goal:.0%} within {arguments.limit:g} s")
    elif theirs is None:
        print(f"\ndptr {ours:.1f} s, authors more than {arguments.limit:g} s: over {arguments.limit / ours:.1f} times")
    else:
        print(f"\ndptr {ours:.1f} s, authors {theirs:.1f} s: {theirs / ours:.1f} times sooner")


class Way:
    """A decoder in training."""

    store: PromptStore

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.taken = 0

    def losses(self, number: int) -> tuple[Iterable[Tensor], int]:
        """Parts of the loss on batch ``number``, and how many rows it has."""
        raise NotImplementedError

    def read(self, rows: NDArray[np.int64]) -> list[str]:
        """Predictions for ``rows``."""
        raise NotImplementedError

    def begin(self, decoder: Decoder, rate: float) -> None:
        """Train ``decoder`` with this rate."""
        self.decoder, self.rate = decoder.to(self.device), rate
        self.optimizer = torch.optim.AdamW(decoder.parameters(), rate, weight_decay=0, fused=True)

    def step(self) -> int:
        """One step of training; returns its rows."""
        self.decoder.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, (self.taken + 1) / WARMUP)
        losses, rows = self.losses(self.taken)
        update(self.decoder, self.optimizer, losses)
        self.taken += 1
        return rows


class Dptr(Way):
    """As `dptr pretrain` does it."""

    def __init__(self, store: PromptStore, rows: NDArray[np.int64], arguments: argparse.Namespace) -> None:
        super().__init__(arguments.device)
        self.store, self.recipe = store, small(load_recipe(arguments.recipe, arguments.changes), arguments)
        self.batches = PromptBatches(store, None, RowSet.of(rows, len(store)), self.recipe)
        torch.manual_seed(0)
        decoder = build_decoder(self.recipe.decoder, len(store.charset.characters), store.dim)
        settings = self.recipe.pretrain
        self.begin(decoder, settings.learning_rate)
        self.low_precision = settings.precision == "bf16"
        self.average = MovingAverage(self.decoder, settings.ema_decay)

    def losses(self, number: int) -> tuple[Iterable[Tensor], int]:
        """All orders in one pass, over embeddings of the store."""
        batch = self.batches(number)
        targets = batch.targets.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision):
            return [self.decoder.loss(batch.memory.to(self.device), targets)], len(targets.inputs)

    def step(self) -> int:
        """One step, and the average of weights that a recipe asks for; without one it is the weights themselves."""
        rows = super().step()
        self.average.update(self.decoder)
        return rows

    def read(self, rows: NDArray[np.int64]) -> list[str]:
        """As validation does."""
        averaged = self.average.module.eval()
        return read_prompts(averaged, self.store, rows, None, 0.0, self.recipe.memory, self.device)


class Authors(Way):
    """One order after another, everything padded, CLIP at every step."""

    def __init__(self, store: PromptStore, clip: Clip, rows: NDArray[np.int64], arguments: argparse.Namespace) -> None:
        super().__init__(arguments.device)
        self.store, self.clip, self.rows, self.batch = store, clip, rows, arguments.batch
        self.order = np.random.default_rng(0)
        recipe = small(load_recipe("paper"), arguments)
        torch.manual_seed(0)
        decoder = build_decoder(recipe.decoder, len(store.charset.characters), store.dim)
        if not isinstance(decoder, ParseqDecoder):
            raise TypeError("the recipe's decoder is not parseq")
        self.parseq = decoder
        self.begin(decoder, AUTHORS_RATE * arguments.batch / AUTHORS_BATCH)

    def losses(self, number: int) -> tuple[Iterable[Tensor], int]:
        """Order by order."""
        labels = self.store.labels_of(self.order.choice(self.rows, min(self.batch, len(self.rows)), replace=False))
        targets = padded_targets(labels, self.store.charset)
        return losses_of_orders(self.parseq, authors_memory(self.clip, labels, self.device), targets), len(labels)

    @torch.inference_mode()
    def read(self, rows: NDArray[np.int64]) -> list[str]:
        """From CLIP's embeddings, padded like those of training."""
        self.decoder.eval()
        labels, texts = self.store.labels_of(rows), list[str]()
        for start in range(0, len(labels), self.batch):
            logits = self.decoder.decode(
                Memory(authors_memory(self.clip, labels[start : start + self.batch], self.device))
            )
            texts += decode_texts(logits, self.store.charset)
        return texts


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


def update(model: nn.Module, optimizer: torch.optim.Optimizer, losses: Iterable[Tensor]) -> None:
    """One step on the sum of ``losses``, each of which is freed before the next is made."""
    optimizer.zero_grad(set_to_none=True)
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 20.0)
    optimizer.step()


def padded_targets(labels: list[str], charset: Charset) -> Targets:
    """Begin, label, end, padded to 27; inputs and outputs are 26 long each."""
    targets = Targets.of(labels, charset)
    missing = LABEL_LENGTH + 1 - targets.inputs.shape[1]
    inputs, outputs = (F.pad(ids, (0, missing), value=targets.padding) for ids in (targets.inputs, targets.outputs))
    return dataclasses.replace(targets, inputs=inputs, outputs=outputs)


def losses_of_orders(decoder: ParseqDecoder, memory: Tensor, targets: Targets) -> Iterator[Tensor]:
    """Each order's part of the loss; taken and differentiated one by one, the graph of one order is in memory."""
    targets = targets.to(memory.device)
    outputs = targets.outputs
    without_end = outputs.masked_fill(outputs == targets.end, targets.padding)
    visible = (targets.inputs != targets.padding)[:, None, None, :]
    orders = draw_permutations(LABEL_LENGTH, decoder.shape.permutations).to(memory.device)
    of_order = [outputs if number < 2 else without_end for number in range(len(orders))]
    counted = sum((part != targets.padding).sum() for part in of_order)
    for order, expected in zip(orders, of_order, strict=True):
        content_mask, query_mask = (mask[:, None] & visible for mask in attention_masks(order[None]))
        content = decoder.dropout(decoder.embed(targets.inputs))
        query = decoder.dropout(decoder.positions[: targets.inputs.shape[1]].expand(len(memory), -1, -1))
        for depth, layer in enumerate(decoder.stack):
            normed = layer.norm_content(content)
            query = stream(layer, query, layer.norm_query(query), normed, memory, query_mask)
            if depth + 1 < len(decoder.layers):
                content = stream(layer, content, normed, normed, memory, content_mask)
        logits = decoder.logits(query).flatten(0, 1).float()
        summed = F.cross_entropy(logits, expected.flatten(), ignore_index=targets.padding, reduction="sum")
        yield summed / counted


def stream(
    layer: TwoStreamLayer, x: Tensor, normed: Tensor, content: Tensor, memory: Tensor, mask: Tensor | None
) -> Tensor:
    """One stream through one layer; keys and values are made anew for each, as PARSeq's attention modules do."""
    x = x + layer.dropout(weighted_attention(layer.self_attention, normed, content, mask))
    x = x + layer.dropout(weighted_attention(layer.cross_attention, layer.norm_cross(x), memory, None))
    thought: Tensor = layer.dropout(layer.feed_forward(layer.norm_feed_forward(x)))
    return x + thought


def weighted_attention(attention: Attention, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
    """What ``nn.MultiheadAttention`` computes by default, weights included, with this attention's parameters."""
    dim, heads = attention.query.out_features, attention.heads
    keys, values = attention.key_value.weight.chunk(2)
    forbidden = None if mask is None else ~mask.expand(-1, heads, -1, -1).flatten(0, 1)
    mixed, _ = F.multi_head_attention_forward(
        x.transpose(0, 1), source.transpose(0, 1), source.transpose(0, 1), dim, heads, None,
        torch.cat([attention.query.bias, attention.key_value.bias]), None, None, False, attention.dropout,
        attention.out.weight, attention.out.bias, attn_mask=forbidden, use_separate_proj_weight=True,
        q_proj_weight=attention.query.weight, k_proj_weight=keys, v_proj_weight=values,
    )  # fmt: skip
    return mixed.transpose(0, 1)


def small(recipe: Recipe, arguments: argparse.Namespace) -> Recipe:
    recipe = recipe.replace("pretrain", batch_size=arguments.batch)
    return recipe.replace("decoder", dim=64, heads=2, layers=2, feed_forward=64) if arguments.quick else recipe


def time_to_goal(
    way: Way,
    held_out: NDArray[np.int64],
    before: float,
    arguments: argparse.Namespace,
    keep: Callable[[Point], None],
) -> float | None:
    """Train until the goal or the limit, printing the curve and giving each point of it, without a name, to ``keep``.

    Returns:
        the seconds, None where the limit came first.
    """
    clock, labels = stopwatch(arguments), way.store.labels_of(held_out)
    spent, rows, next_point = before, 0, arguments.every
    while spent < arguments.limit:
        started = clock()
        rows += way.step()
        spent += clock() - started
        if spent >= next_point or spent >= arguments.limit:
            started = clock()
            texts = way.read(held_out)
            prediction = clock() - started
            read = score(labels, texts)
            print(f"{'':9}{spent:9.1f}{rows:10,}{read.accuracy:8.1%}", flush=True)
            figures = {"words": read.words, "accuracy": read.accuracy, "one_minus_ned": read.one_minus_ned}
            right = [label == text for label, text in zip(labels, texts, strict=True)]
            keep({**figures, "images": labels, "right": right, "seconds": spent, "steps": way.taken})
            if read.accuracy >= arguments.goal:
                return spent
            # Where reading is slow there are fewer points: else the benchmark would mostly read.
            next_point = spent + max(arguments.every, 2 * prediction)
    return None


def stopwatch(arguments: argparse.Namespace) -> Callable[[], float]:
    """Return a clock: processor time on a CPU, which other programs do not lengthen, else wall time."""

    def now() -> float:
        if arguments.device.startswith("cuda"):
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    return now


if __name__ == "__main__":
    run_script(main)
