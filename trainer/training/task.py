"""What is trained, and on what: all that a stage hands to the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from dptr.trainer.training.trackers import Observer


class Sendable(Protocol):
    """What a batch has to be: able to go to a device."""

    def to(self, device: torch.device) -> Any:
        """Return the batch on a device."""


Batch = TypeVar("Batch", bound=Sendable)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a factor on the learning rate; with 0 they are frozen."""

    parameters: Sequence[nn.Parameter]
    lr_scale: float = 1.0


@dataclass
class Task(Generic[Batch]):
    """What is trained, and on what.

    Attributes:
        model: whose weights are saved.
        batch: micro-batch number -> batch; a pure function, called in workers when there are any.
        loss: batch on the device -> scalar loss.
        validate: model -> metrics; ``score`` among them decides which checkpoint is best (higher is better).
        rows: batch -> how many rows it has, for the rate shown.
        groups: parameters by learning rate.
        observers: shown every log line, besides the files.
        notice: shown every batch before it is computed.
        fixed_statistics: whether batch norms keep their running statistics.
        starts_trained: whether the weights are validated before the first step, as a candidate for the best checkpoint.
    """

    model: nn.Module
    batch: Callable[[int], Batch]
    loss: Callable[[Batch], Tensor]
    validate: Callable[[nn.Module], dict[str, float]]
    rows: Callable[[Batch], int]
    groups: Sequence[ParameterGroup]
    observers: Sequence[Observer] = ()
    notice: Callable[[Batch], None] = lambda batch: None
    fixed_statistics: bool = False
    starts_trained: bool = False
