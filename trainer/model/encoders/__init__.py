"""Image encoders: word images in, visual tokens out."""

from __future__ import annotations

from dptr.cache.errors import UserError
from dptr.trainer.model.encoders.clip import PREFIX, ClipEncoder
from dptr.trainer.model.encoders.convolution import ConvolutionalEncoder
from dptr.trainer.model.encoders.vit import VisionTransformer
from dptr.trainer.training.settings import EncoderSettings

Encoder = VisionTransformer | ConvolutionalEncoder | ClipEncoder


def build_encoder(settings: EncoderSettings) -> Encoder:
    """Build the encoder that a recipe names: ``vit``, ``convolution``, or ``clip:`` and a directory or hub id.

    Raises:
        UserError: there is no such encoder.
    """
    if settings.kind == "vit":
        return VisionTransformer(settings)
    if settings.kind == "convolution":
        return ConvolutionalEncoder(settings)
    if settings.kind.startswith(PREFIX):
        return ClipEncoder(settings)
    raise UserError(
        f"no encoder {settings.kind!r}", "Use vit, convolution, or clip: and a directory or hub id, such as clip:tiny"
    )
