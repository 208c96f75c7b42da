"""Compute, not measure, what the reproduction costs: disk, memory of a step, hours on one to eight GPUs.

    python examples/reproduce/estimate.py --peak 989 --share 0.35

Operations are counted by torch at a few rows and are proportional to rows; labels have 7 characters. Activations are
what autograd keeps in bf16 for one row, each storage once; attention weights count, which fused kernels do not keep.
Hours are operations over ``--peak`` (a card's dense bf16 rate in TFLOP/s: 989 for H100
and H200, 312 for A100) times ``--share`` of it that training reaches; ``benchmarks/gpu.py`` measures that share.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dptr.cache.errors import run_script
from dptr.cache.printing import table
from dptr.cache.text.charset import Charset
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Memory, Targets
from dptr.trainer.model.recognizer import Recognizer
from dptr.trainer.recipe import load_recipe

#: ViT-B/16's joint space, a text embedding of the full context and of the content of a median label, in tokens.
DIM, FULL, CONTENT = 512, 77, 8
#: A label of the length that MJSynth's and SynthText's were taken to have; sorting by length pads batches little.
LABEL = 7 * "a"
ROWS, STEP = 2, 768
GPUS = (1, 2, 4, 8)


def main() -> None:
    """Parse, count, print three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", type=float, default=989, help="a card's dense bf16 rate, TFLOP/s")
    parser.add_argument("--share", type=float, default=0.35, help="share of it that training reaches")
    arguments = parser.parse_args()
    print("\n\n".join([disk(), memory(), hours(arguments.peak * 1e12 * arguments.share)]))


def stages(
    changes: Sequence[str] = (), text_tokens: int = FULL
) -> dict[str, tuple[int, nn.Module, Callable[[], Tensor]]]:
    """Return steps, model and loss of ``ROWS`` rows of stages 2 and 3, of recipe ``paper`` with ``changes``."""
    recipe, charset = load_recipe("paper", changes), Charset.named("94")
    targets = Targets.of([LABEL] * ROWS, charset)
    decoder = build_decoder(recipe.decoder, len(charset.characters), DIM)
    recognizer = Recognizer(recipe, charset, DIM)
    images = torch.zeros(ROWS, 3, *recognizer.image_size, dtype=torch.uint8)
    text = Memory(torch.randn(ROWS, 1 + text_tokens, DIM))
    return {
        "stage 2": (recipe.pretrain.steps, decoder, lambda: decoder.loss(text, targets)),
        "stage 3": (recipe.finetune.steps, recognizer, lambda: recognizer.loss(images, targets)),
    }


def operations(loss: Callable[[], Tensor]) -> float:
    """Return floating-point operations of one row, forward and backward.

    torch counts no operations in a CPU's fused attention, so attention is computed by plain products.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss().backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops()) / ROWS


def activations(loss: Callable[[], Tensor]) -> float:
    """Return bytes that autograd keeps of one row in bf16 autocast; weights, which it keeps too, do not count."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf or not tensor.requires_grad:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss()
    return sum(kept.values()) / ROWS


def disk() -> str:
    """Return a table of bytes a prompt and a photo."""
    kinds = {"prompt, --context full": FULL, "prompt, --context content": CONTENT, "photo, --crops whole": 197}
    # Two bytes a number, and the pooled vector in four.
    sizes = {kind: tokens * DIM * 2 + DIM * 4 for kind, tokens in kinds.items()}
    rows = [(kind, f"{size / 1e3:.0f}", f"{size / 1e3:.0f}") for kind, size in sizes.items()]
    return table(["row, float16", "kB", "GB a million"], rows, numbers=(1, 2))


def memory() -> str:
    """Return a table of the memory of a step of 768 rows on one card."""
    rows = []
    for name, (_, model, loss) in stages().items():
        parameters = sum(parameter.numel() for parameter in model.parameters())
        fixed, each = 16 * parameters / 1e9, activations(loss) * STEP / 1e9
        rows.append((name, f"{parameters / 1e6:.1f}", f"{fixed:.1f}", f"{each:.0f}", f"{fixed + each:.0f}"))
    head = ["", "parameters, M", "weights, gradients, moments, GB", "activations, GB", "in all, GB"]
    return table(head, rows, numbers=(1, 2, 3, 4))


def hours(rate: float) -> str:
    """Return a table of hours for a number of GPUs, each computing at ``rate`` operations a second."""
    rows = []
    for name, (steps, _, loss) in stages().items():
        each = operations(loss)
        seconds = steps * STEP * each / rate
        rows.append((name, f"{steps:,}", f"{each / 1e9:.1f}", *(f"{seconds / count / 3600:.1f}" for count in GPUS)))
    head = ["hours", "steps", "GFLOP a row", *(f"{count} GPU{'s' if count > 1 else ''}" for count in GPUS)]
    return table(head, rows, numbers=tuple(range(1, len(head))))


if __name__ == "__main__":
    run_script(main)
