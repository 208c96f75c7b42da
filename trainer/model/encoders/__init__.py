"""Image encoders: word images in, visual tokens out.

base has the interface, and the stand-in for stored tokens; vit and convolution are trained from scratch, clip and
transformers_model start from a model.

Besides the bundled ones, a package may register a subclass of :class:`~dptr.trainer.model.encoders.base.Encoder` under
the entry point group ``dptr.encoders``; its name then works as ``encoder.kind`` in a recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from dptr.cache.errors import UserError
from dptr.trainer.model.encoders import clip, transformers_model
from dptr.trainer.model.encoders.base import Encoder, PretrainedEncoder
from dptr.trainer.model.encoders.clip import ClipEncoder
from dptr.trainer.model.encoders.convolution import ConvolutionalEncoder
from dptr.trainer.model.encoders.transformers_model import TransformersEncoder
from dptr.trainer.model.encoders.vit import VisionTransformer
from dptr.trainer.recipe import EncoderSettings

_BUNDLED: dict[str, type[Encoder]] = {"vit": VisionTransformer, "convolution": ConvolutionalEncoder}
#: Prefixes of encoders that start from a model, before its folder or hub id.
_OF_A_MODEL: dict[str, type[PretrainedEncoder]] = {
    clip.PREFIX: ClipEncoder,
    transformers_model.PREFIX: TransformersEncoder,
}
_DESCRIBE: dict[str, Callable[[Path], str]] = {
    clip.PREFIX: clip.describe,
    transformers_model.PREFIX: transformers_model.describe,
}


def build_encoder(settings: EncoderSettings) -> Encoder:
    """Build the encoder that a recipe names, untrained.

    Raises:
        UserError: there is no such encoder.
    """
    registered = {point.name: point for point in entry_points(group="dptr.encoders")}
    kind: type[Encoder]
    if settings.kind in _BUNDLED:
        kind = _BUNDLED[settings.kind]
    elif _prefix(settings.kind):
        kind = _OF_A_MODEL[_prefix(settings.kind)]
    elif settings.kind in registered:
        kind = registered[settings.kind].load()
    else:
        known = ", ".join([*sorted([*_BUNDLED, *registered]), *(f"{prefix}ID" for prefix in _OF_A_MODEL)])
        raise UserError(f"no encoder {settings.kind!r}", f"Known: {known}; ID is a folder or hub id, as in clip:tiny")
    return kind(settings)


def model_of(kind: str) -> str | None:
    """Return the folder or hub id of the model that an encoder starts from; None for one that is all dptr's own."""
    return kind.removeprefix(_prefix(kind)) if _prefix(kind) else None


def describe(kind: str, folder: Path) -> str:
    """Return the configuration of the model in ``folder``, which ``kind`` starts from, as the recipe keeps it.

    Raises:
        UserError: the model is not of this kind.
    """
    return _DESCRIBE[_prefix(kind)](folder)


def _prefix(kind: str) -> str:
    return next((prefix for prefix in _OF_A_MODEL if kind.startswith(prefix)), "")
