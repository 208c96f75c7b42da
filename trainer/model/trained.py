"""What a model is built again from: a run's folder or a model file gives it."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from torch import Tensor

from dptr.cache.text.charset import Charset
from dptr.cache.text.lexicon import Lexicon
from dptr.trainer.recipe import Recipe

#: The stage that made a model.
RunKind = Literal["pretrain", "finetune"]


class Trained(Protocol):
    """Weights with all that is needed to build their model again: a :class:`Run`, or a model file.

    Attributes:
        name: for people. kind: the stage that made it. recipe: as resolved. charset: of its decoder.
        memory_dim: width of the memory its decoder reads. data: identities of what it was trained on.
        clip: name of the CLIP that embedded its text; empty where that is not known.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> RunKind: ...  # noqa: D102
    @property
    def recipe(self) -> Recipe: ...  # noqa: D102
    @property
    def charset(self) -> Charset: ...  # noqa: D102
    @property
    def memory_dim(self) -> int: ...  # noqa: D102
    @property
    def data(self) -> dict[str, Any]: ...  # noqa: D102
    @property
    def clip(self) -> str: ...  # noqa: D102

    def weights(self) -> dict[str, Tensor]:
        """Return the weights to use, by name."""
        ...

    def weights_hash(self) -> str:
        """Return a hash that changes whenever :meth:`weights` does."""
        ...

    def lexicon(self) -> Lexicon | None:
        """Return the words that its recogniser prefers; None without any."""
        ...
