"""A loss compiled by torch: its operations joined into few kernels, once for each shape.

Compiling a shape takes seconds to minutes, so batches are padded to few (:mod:`dptr.trainer.data.buckets`). On a GPU
a small model's step is otherwise mostly the time to launch its kernels; on a CPU it only took longer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from dptr.cache.errors import UserError
from dptr.trainer.model.folding import cpu_has_bfloat16
from dptr.trainer.training.settings import TrainingSettings

Batch = TypeVar("Batch")

#: Shapes of one loss: lengths by tokens, by the few numbers of reading orders that the shortest labels have.
_MOST_SHAPES = 128


def is_compiled(settings: TrainingSettings, device: torch.device) -> bool:
    """Return whether the loss is compiled in a run with these settings."""
    return settings.compile == "yes" or (settings.compile == "auto" and device.type == "cuda")


def is_halved(settings: TrainingSettings, device: torch.device) -> bool:
    """Return whether products are computed in bfloat16; weights and moments stay in single precision."""
    if settings.precision != "auto":
        return settings.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and cpu_has_bfloat16()


def compiled(
    loss: Callable[[Batch], Tensor], backend: str | Callable[..., Any] = "inductor"
) -> Callable[[Batch], Tensor]:
    """Return a loss that is compiled the first time it meets a shape.

    Raises:
        UserError: there is no compiler.
    """
    if backend == "inductor" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError("torch compiles with a C++ compiler, and there is none", 'Install g++, or set compile to "no"')
    torch._dynamo.config.recompile_limit = _MOST_SHAPES
    made: Callable[[Batch], Tensor] = torch.compile(loss, dynamic=False, backend=backend)
    return made
