"""How an ORP bank is made: which settings there are, and which of them make two banks' embeddings different."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from dptr.cache.choices import EmbeddingsDtype
from dptr.cache.errors import UserError
from dptr.cache.ranges import require_at_least
from dptr.pipeline.choices import Precision
from dptr.pipeline.photos.crops import CropSettings


@dataclass(frozen=True, kw_only=True)
class OrpBankSettings(CropSettings):
    """How a bank is made: which rectangles are cut, as :class:`CropSettings` says, and what becomes of them.

    Attributes:
        clip: ``tiny``, a directory in transformers' format, or a hub id.
        precision: arithmetic of the image encoder.
        tokens_per_crop: tokens kept of each crop, drawn at random; None keeps all.
        seed: of crops and tokens.
        dtype: how embeddings are stored.
        shard_rows: crops per shard; a killed run loses at most these.
        batch: crops per forward pass; None: what suits the device. Another may change the last bits of the embeddings.
        workers: threads that read and cut photos ahead of the model. Never changes a byte.
        max_bad: rejected photos allowed; None allows any number.
        retry_quarantined: read again what an earlier run rejected and what has not changed since.
        exclude_near: images, such as a benchmark's, that no photo of the bank may nearly equal.
        exclude_threshold: cosine of the pooled vectors of whole pictures from which on two count as equal.
        device: a torch device.
    """

    clip: str = "tiny"
    precision: Precision = "fp32"
    tokens_per_crop: int | None = None
    seed: int = 0
    dtype: EmbeddingsDtype = "float16"
    shard_rows: int = 1024
    batch: int | None = None
    workers: int = 1
    max_bad: int | None = None
    retry_quarantined: bool = False
    exclude_near: tuple[Path, ...] = ()
    exclude_threshold: float = 0.95
    device: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        # Drawing would fail photo by photo, and each would be remembered as a bad one.
        if not 0 <= self.seed < 1 << 64:
            raise UserError(f"seed {self.seed} is impossible", "Use 0 or any whole number below 2**64")
        require_at_least(1, batch=self.batch)

    def crops(self) -> CropSettings:
        """Return the part that says which rectangles are cut."""
        return CropSettings(**{part.name: getattr(self, part.name) for part in fields(CropSettings)})
