"""Decoders: a memory in, logits of characters out.

base has the interface; autoregressive holds nrtr, the simplest, and what it shares with parseq. parallel reads all
positions at once, ctc columns; pooled unfolds one vector for any of them.

Besides the bundled ones, a package may register a :class:`~dptr.trainer.model.decoders.base.Decoder` subclass under the
entry point group ``dptr.decoders``; its name then works as ``decoder.kind`` in a recipe.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from dptr.cache.errors import UserError
from dptr.cache.text.charset import Charset
from dptr.trainer.model.decoders.autoregressive import NrtrDecoder
from dptr.trainer.model.decoders.base import Decoder, DecoderShape
from dptr.trainer.model.decoders.ctc import CtcDecoder
from dptr.trainer.model.decoders.parallel import ParallelDecoder
from dptr.trainer.model.decoders.parseq import ParseqDecoder
from dptr.trainer.model.decoders.pooled import PooledDecoder
from dptr.trainer.recipe import DecoderSettings, MemorySettings

_BUNDLED: dict[str, type[Decoder]] = {
    "parseq": ParseqDecoder,
    "nrtr": NrtrDecoder,
    "parallel": ParallelDecoder,
    "ctc": CtcDecoder,
}


def build_decoder(
    settings: DecoderSettings, characters: int, memory_dim: int, memory: MemorySettings | None = None
) -> Decoder:
    """Make an untrained decoder for memories of tokens, or of the kind in ``memory``.

    Raises:
        UserError: no decoder of that kind is bundled or registered.
    """
    kind = _kind(settings.kind)
    shape = DecoderShape(
        dim=settings.dim,
        memory_dim=memory_dim,
        heads=settings.heads,
        layers=settings.layers,
        feed_forward=settings.feed_forward,
        dropout=settings.dropout,
        characters=characters,
        max_label_length=settings.max_label_length,
        permutations=settings.permutations,
        refinements=settings.refinements,
        refinement=settings.refinement,
    )
    decoder = kind(shape)
    return PooledDecoder(decoder, memory.tokens) if memory is not None and memory.kind == "pooled" else decoder


def emitted_by(kind: str, charset: Charset) -> Charset:
    """Return a charset in the order in which a new decoder of a kind is to emit labels.

    Columns of a picture run from left to right, and what is aligned with them names letters as they are seen. What
    attends finds a letter wherever it stands, and emits labels as they are written: so embeddings of text come.

    Raises:
        UserError: no decoder of that kind is bundled or registered.
    """
    return charset if _kind(kind).reads_columns else charset.emitted_in("logical")


def _kind(name: str) -> type[Decoder]:
    if name in _BUNDLED:
        return _BUNDLED[name]
    registered = {point.name: point for point in entry_points(group="dptr.decoders")}
    if name not in registered:
        known = ", ".join(sorted([*_BUNDLED, *registered]))
        raise UserError(f"no decoder of kind {name!r}", f"Known kinds: {known}")
    kind: type[Decoder] = registered[name].load()
    return kind
