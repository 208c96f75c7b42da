"""CLIP, loaded once by one path, for both towers.

They come from the same files and carry the same weights hash, which is how a prompt store and an ORP bank know that
they belong together. A family of models is supported when its two towers are named and joined as CLIP's are; what
differs otherwise stands in one table.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dptr.cache.errors import UserError
from dptr.cache.tensor_hash import hash_tensors
from dptr.cache.word_images.dataset import preprocess
from dptr.pipeline.choices import Precision
from dptr.pipeline.clip.batch_size import Halving, batch_for
from dptr.pipeline.clip.clip_files import find_clip, require_safetensors

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass(frozen=True)
class _Family:
    """What sets one kind of model apart.

    Attributes:
        image_processor: how it reads pictures.
        pooled_token: which token of a prompt is its pooled one.
        padding: the token that fills prompts up where its authors' tokenizer fills them with another one than
            transformers' does; None where both agree. OpenAI's fills with 0, transformers' with the end token.
    """

    image_processor: str
    pooled_token: Literal["first", "last"]
    padding: int | None = None


_FAMILIES = {
    "clip": _Family("CLIPImageProcessorPil", "last", padding=0),
    "metaclip_2": _Family("CLIPImageProcessorPil", "last"),
    "chinese_clip": _Family("ChineseCLIPImageProcessorPil", "first"),
}
#: Every tokenizer has several tokens for these together; one without a vocabulary has its unknown token only.
_PROBES = ["street", "Q", "7"]
#: On a CPU.
PICTURES_PER_BATCH = 32
_IMAGE_SIDE = ("vision_model.", "visual_projection.")
_REASON_CHARACTERS = 300


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP with its tokenizer and image processor.

    Attributes:
        name: as given (``tiny``, a path or a hub id).
        model: in evaluation mode, in the precision asked for.
        pooled_token: the token whose state, projected, is a prompt's pooled vector.
        padding: the token id that fills prompts up as the model's authors do.
        tokenizer: transformers tokenizer; a call gives ``input_ids`` with begin and end tokens.
        image_processor: transformers' PIL image processor.
        weights: SHA-256 over all weights as loaded in float32, whatever file they came from.
        image_weights: the same of the image tower alone.
        tokenizer_hash: SHA-256 over the tokenizer's vocabulary, merges and rules.
        load_seconds: how long loading took.
    """

    name: str
    model: Any  # a CLIPModel or its like; annotations inside transformers do not pass a strict check
    pooled_token: Literal["first", "last"]
    padding: int
    tokenizer: Any
    image_processor: Any
    weights: str
    image_weights: str
    tokenizer_hash: str
    load_seconds: float

    @property
    def device(self) -> Any:
        """Where the model lives."""
        return self.model.device

    def identity(self) -> dict[str, str]:
        """The part of a store's identity that its encoder fixes."""
        return {"encoder": self.name, "weights": self.weights}


def load_clip(name: str, precision: Precision = "fp32", device: str = "cpu") -> Clip:
    """Load a CLIP.

    Args:
        name: ``tiny``, a directory that transformers saved, or a hub id such as ``openai/clip-vit-base-patch16``.
        precision: the arithmetic of both towers.
        device: a torch device.

    Raises:
        UserError: not found (or no network), of a family that is not supported, not loadable, or in pickled weights.
    """
    started = time.monotonic()
    import torch

    folder = find_clip(name)
    family, model, tokenizer, image_processor = _parts(name, folder)
    weights, image_weights = weights_hash(model), weights_hash(model, _IMAGE_SIDE)
    model.train(False).requires_grad_(False)
    torch.nn.Module.to(model, device, torch.bfloat16 if precision == "bf16" else torch.float32)
    return Clip(
        name=name,
        model=model,
        pooled_token=family.pooled_token,
        padding=family.padding if family.padding is not None else tokenizer.pad_token_id,
        tokenizer=tokenizer,
        image_processor=image_processor,
        weights=weights,
        image_weights=image_weights,
        tokenizer_hash=_tokenizer_hash(tokenizer),
        load_seconds=time.monotonic() - started,
    )


def _parts(name: str, folder: Path) -> tuple[_Family, Any, Any, Any]:
    """Return family, model, tokenizer and image processor, each checked against the others."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    # Code that came with a model is never run, and transformers does not ask on a terminal whether to run it.
    safely = {"trust_remote_code": False}
    with _loading(name, "configuration"):
        family = _family(name, transformers.AutoConfig.from_pretrained(folder, **safely).model_type)
    require_safetensors(folder)
    with _loading(name, "weights"):
        model, loading = transformers.AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported by name below
            output_loading_info=True,
            **safely,
        )
    with _loading(name, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **safely)
        spelt = tokenizer(_PROBES)["input_ids"]
    with _loading(name, "image processor"):
        image_processor = getattr(transformers, family.image_processor).from_pretrained(folder)
    problem = _weights_problem(loading) or _tokenizer_problem(tokenizer, spelt, family, model)
    if problem:
        raise _cannot_load(name, problem)
    return family, model, tokenizer, image_processor


@contextlib.contextmanager
def _loading(name: str, part: str) -> Iterator[None]:
    """Keep the library quiet, and say in one line which part of a model it could not load."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except UserError:
        raise
    # What a damaged file makes the library raise is any of a dozen types, most of them not its own.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_CHARACTERS]
        raise _cannot_load(name, f"its {part} cannot be read ({reason})") from error


def _weights_problem(loading: dict[str, Any]) -> str | None:
    """Say which weights do not fit; transformers draws such tensors at random, or leaves them out."""
    if loading["mismatched_keys"]:
        key, stored, expected = min(loading["mismatched_keys"])
        return f"its weights have {key} of shape {tuple(stored)}, its config.json says {tuple(expected)}"
    if loading["missing_keys"]:
        return f"its weights lack {min(loading['missing_keys'])}"
    layers = [key for key in loading["unexpected_keys"] if re.search(r"\.layers?\.\d+\.", key)]
    return f"its weights have {min(layers)}, a layer that its config.json does not have" if layers else None


def _tokenizer_problem(tokenizer: Any, spelt: list[list[int]], family: _Family, model: Any) -> str | None:
    if len({token for row in spelt for token in row[1:-1]}) < len(_PROBES):
        return "it has no tokenizer, or one that knows no letters"
    if family.padding is None and tokenizer.pad_token_id is None:
        return "its tokenizer has no padding token"
    largest, room = max(tokenizer.get_vocab().values()), model.config.text_config.vocab_size
    return f"its tokenizer has token {largest}, its text model {room} of them" if largest >= room else None


def _cannot_load(name: str, problem: str) -> UserError:
    return UserError(f"cannot load CLIP {name!r}: {problem}", "Give a directory with all of the model's files")


def _family(name: str, model_type: str) -> _Family:
    if model_type not in _FAMILIES:
        raise UserError(f"{name} is a model of type {model_type!r}", f"Supported are {', '.join(_FAMILIES)}")
    return _FAMILIES[model_type]


def weights_hash(model: torch.nn.Module, prefixes: tuple[str, ...] = ("",)) -> str:
    """Return the SHA-256 over the names, shapes and values of a model's weights whose names begin so."""
    tensors = model.state_dict().items()
    return hash_tensors((name, tensor.contiguous().numpy()) for name, tensor in tensors if name.startswith(prefixes))


class ImageTower:
    """CLIP's image side: pictures to token states and pooled vectors in the joint space."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._model = clip.model
        config = clip.model.config.vision_config
        self.tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.dim = int(clip.model.config.projection_dim)
        self._side = int(config.image_size)
        #: Pictures that are encoded at once where nothing else is asked for.
        self.batch = batch_for(clip.model, int(config.hidden_size), self.tokens, PICTURES_PER_BATCH)
        self._halving = Halving("pictures")

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        """Resize, crop and normalise one picture as its CLIP expects, shape (3, height, width)."""
        pixels = self._clip.image_processor(images=image.convert("RGB"), return_tensors="np")["pixel_values"][0]
        return np.asarray(pixels, dtype=np.float32)

    def preprocess_word(self, image: Image.Image) -> NDArray[np.float32]:
        """Stretch a word image to the tower's square, as fine-tuning does: cut to a square it would lose its ends."""
        processor = self._clip.image_processor
        pixels = preprocess(image, self._side, self._side).astype(np.float32) / 255
        mean, std = (
            np.array(values, np.float32)[:, None, None] for values in (processor.image_mean, processor.image_std)
        )
        return np.asarray((pixels - mean) / std, np.float32)

    def encode(self, pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Encode pictures.

        All tokens pass through the final layer norm and the projection, as in the authors' code; CLIP itself does that
        with the class token only, which is the pooled vector.

        Args:
            pixels: shape (batch, 3, height, width).

        Returns:
            token states (batch, tokens, dim) and pooled vectors (batch, dim), float32.
        """
        parts = self._halving.run(self._encode, pixels)
        tokens = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return tokens, tokens[:, 0].copy()

    def _encode(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            inputs = torch.from_numpy(pixels).to(self._clip.device, self._model.dtype)
            hidden = self._model.vision_model(pixel_values=inputs).last_hidden_state
            projected = self._model.visual_projection(self._model.vision_model.post_layernorm(hidden))
            tokens: NDArray[np.float32] = projected.float().cpu().numpy()
        return tokens


def _tokenizer_hash(tokenizer: Any) -> str:
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # Padding and truncation are call settings that change with use, not part of what the tokenizer is.
    rules.pop("padding", None)
    rules.pop("truncation", None)
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
