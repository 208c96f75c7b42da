"""A multilingual text encoder with the image encoder of its teacher CLIP: ``TEXT+IMAGE``.

It is a sentence encoder: a BERT or XLM-R, the mean of its embeddings, and a projection. M-CLIP publishes them as one
file, sentence-transformers as a folder for each of the three.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dptr.cache import hub
from dptr.cache.errors import UserError
from dptr.cache.file_names import MODEL_CONFIG_FILE, WEIGHTS_FILE
from dptr.pipeline.clip.families import Family, Way

_MODULES = "modules.json"
#: How M-CLIP names its two parts in one file of weights.
_TRANSFORMER, _PROJECTION = "transformer.", "LinearTransformation."


class TextModel(torch.nn.Module):
    """A sentence encoder and its projection into a CLIP's joint space."""

    def __init__(self, transformer: Any, projection: torch.nn.Linear) -> None:
        super().__init__()
        self.transformer = transformer
        self.projection = projection

    @property
    def config(self) -> Any:
        """The sentence encoder's."""
        return self.transformer.config

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.projection.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of its weights."""
        return self.projection.weight.device


class Multilingual(Family):
    """The text encoder of a pair: bidirectional, padding masked, mean pooling."""

    way: Way = "exact length"

    def text_model(self, model: Any) -> Any:
        """See :meth:`Family.text_model`."""
        return model.transformer

    def most_tokens(self, model: Any) -> int:
        """See :meth:`Family.most_tokens`; of the RoBERTa kind, positions count from behind the padding token's."""
        positions = int(model.config.max_position_embeddings)
        return positions - int(model.config.pad_token_id) - 1 if "roberta" in model.config.model_type else positions

    def vocabulary(self, model: Any) -> int:
        """See :meth:`Family.vocabulary`."""
        return int(model.config.vocab_size)

    def text_dim(self, model: Any) -> int:
        """See :meth:`Family.text_dim`."""
        return int(model.projection.in_features)

    def joint_dim(self, model: Any) -> int:
        """See :meth:`Family.joint_dim`."""
        return int(model.projection.out_features)

    def project_text(self, model: Any, embeddings: torch.Tensor) -> torch.Tensor:
        """See :meth:`Family.project_text`: (..., text_dim) to (..., joint_dim)."""
        projected: torch.Tensor = model.projection(embeddings)
        return projected

    def pool_text(self, model: Any, embeddings: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """See :meth:`Family.pool_text`: the mean of the real ones of (batch, length, text_dim)."""
        real = (torch.arange(embeddings.shape[1], device=embeddings.device) < lengths[:, None]).to(embeddings.dtype)
        return self.project_text(model, (embeddings * real[..., None]).sum(1) / lengths[:, None])

    def text_features(self, model: Any, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :meth:`Family.text_features`: (batch, length, text_dim) and (batch, joint_dim)."""
        embeddings = self.text_embeddings(model, ids, mask)
        return embeddings, self.pool_text(model, embeddings, mask.sum(1))


def load_text_encoder(folder: Path) -> TextModel:
    """Load a text encoder as M-CLIP or sentence-transformers publish it, in float32.

    Raises:
        UserError: the folder holds none, or weights that do not fit. Anything else, where its files are damaged.
    """
    if (folder / _MODULES).is_file():
        return _of_sentence_transformers(folder)
    config = _json(folder / MODEL_CONFIG_FILE)
    if not {"modelBase", "numDims", "transformerDimensions"} <= config.keys():
        raise UserError(
            f"{folder} holds no text encoder of M-CLIP or sentence-transformers",
            "Name a pair as TEXT+IMAGE, such as M-CLIP/XLM-Roberta-Large-Vit-B-32+openai/clip-vit-base-patch32",
        )
    weights = load_file(folder / WEIGHTS_FILE)
    transformer = _transformer(_base(folder, config["modelBase"]), _named(weights, _TRANSFORMER))
    projection = torch.nn.Linear(config["transformerDimensions"], config["numDims"])
    projection.load_state_dict(_named(weights, _PROJECTION))
    return TextModel(transformer, projection)


def _of_sentence_transformers(folder: Path) -> TextModel:
    parts = {part["type"].rpartition(".")[2]: folder / part["path"] for part in _json(folder / _MODULES)}
    pooling = _json(parts["Pooling"] / MODEL_CONFIG_FILE) if "Pooling" in parts else {}
    if set(parts) - {"Normalize"} != {"Transformer", "Pooling", "Dense"} or not pooling.get("pooling_mode_mean_tokens"):
        raise UserError(
            f"{folder} is not a sentence encoder with mean pooling and a projection", "Give another text encoder"
        )
    dense = _json(parts["Dense"] / MODEL_CONFIG_FILE)
    if not dense["activation_function"].endswith("Identity"):
        raise UserError(f"the projection of {folder} is not linear", "Give another text encoder")
    projection = torch.nn.Linear(dense["in_features"], dense["out_features"], bias=dense["bias"])
    projection.load_state_dict(_named(load_file(parts["Dense"] / WEIGHTS_FILE), "linear."))
    return TextModel(_transformer(parts["Transformer"], load_file(parts["Transformer"] / WEIGHTS_FILE)), projection)


def _transformer(folder: Path, weights: dict[str, torch.Tensor]) -> Any:
    """Build the sentence encoder that a folder's configuration says, with these weights."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model = AutoModel.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # A pooler of the model's own is not used; older files list the positions, which are no weights.
    wrong = [name for name in missing if not name.startswith("pooler.")]
    wrong += [name for name in unexpected if not name.endswith("position_ids")]
    if wrong:
        raise UserError(f"the weights of {folder} and its configuration differ in {min(wrong)}", "Give complete files")
    if any(name.startswith("pooler.") for name in missing):
        model.pooler = None  # drawn at random: it must not enter the hash
    return model


def _base(folder: Path, name: str) -> Path:
    """Return a folder with the configuration of the model that an M-CLIP started from."""
    beside = folder / name
    return beside if (beside / MODEL_CONFIG_FILE).is_file() else hub.download(name, [MODEL_CONFIG_FILE])


def _named(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value.float() for name, value in weights.items() if name.startswith(prefix)}


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
