"""Weights of a new CLIP taken from another: all of equal name and shape, and the embeddings of the pieces both know.

A CLIP for another script so starts with trained encoders, and learns the embeddings of new pieces only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dptr.cache.errors import UserError
from dptr.cache.file_names import TOKENIZER_FILES, WEIGHTS_FILE
from dptr.cache.progress import note

_PIECES = "text_model.embeddings.token_embedding.weight"


@torch.no_grad()
def take_weights_of_clip(clip: torch.nn.Module, pieces: dict[str, int], folder: Path) -> None:
    """Copy into ``clip``, a ``CLIPModel``, what the one in ``folder`` has of its weights, and say what is new.

    Args:
        pieces: piece to row of the token embeddings, (pieces, width), as the tokenizer has them.

    Raises:
        UserError: the folder's weights cannot be read, or its image encoder is of another shape.
    """
    try:
        theirs: dict[str, Tensor] = load_file(folder / WEIGHTS_FILE)
        known: dict[str, int] = json.loads((folder / TOKENIZER_FILES[0]).read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{folder} is no CLIP to start from ({error})", "Give a CLIP's folder, or `tiny`") from error
    new: list[str] = []
    for name, ours in clip.state_dict().items():
        if name in theirs and theirs[name].shape == ours.shape:
            ours.copy_(theirs[name])
        elif name != _PIECES:
            new.append(name)
    if any(name.startswith("vision_model.") for name in new):
        raise UserError(f"the image encoder of {folder} is of another shape", "Start from a CLIP of the same shape")
    shared = sorted((row, known[piece]) for piece, row in pieces.items() if piece in known)
    embeddings: Any = clip.get_parameter(_PIECES)
    if shared and _PIECES in theirs and theirs[_PIECES].shape[1] == embeddings.shape[1]:
        rows, their_rows = (torch.tensor(column) for column in zip(*shared, strict=True))
        embeddings[rows] = theirs[_PIECES][their_rows].to(embeddings)
    note(
        f"from {folder.name}: {len(shared):,} of {len(pieces):,} pieces, and all else but {', '.join(new) or 'nothing'}"
    )
