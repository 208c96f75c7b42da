"""Loading of CLIP, once for both encoders.

Both have the same weights hash, by which a prompt store and an ORP bank are recognised as compatible. What differs
between kinds of CLIP is in :mod:`dptr.pipeline.clip.families`.
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
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dptr.cache.choices import Precision
from dptr.cache.errors import UserError
from dptr.cache.file_names import MODEL_CONFIG_FILE
from dptr.pipeline.clip.batch_size import Halving, batch_for
from dptr.pipeline.clip.clip_files import PAIRED, find_both, hash_tensors, require_safetensors
from dptr.pipeline.clip.families import FAMILIES, Family

if TYPE_CHECKING:
    import torch
    from PIL import Image


#: On a CPU.
PICTURES_PER_BATCH = 32
_REASON_CHARACTERS = 300
#: Every tokenizer has several tokens for these together; one without a vocabulary has its unknown token only.
_PROBES = ["street", "Q", "7"]


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP with its tokenizer and image processor.

    Attributes:
        name: as given (``tiny``, a path or a hub id, two of them with a plus for a pair).
        family: how texts are run. model: its model, in evaluation mode, in the precision asked for.
        image_family: how pictures are run. image_model: its model; the same one unless the CLIP is a pair.
        padding: the token id that fills prompts up as the model's authors do.
        tokenizer: transformers tokenizer; a call gives ``input_ids`` with begin and end tokens.
        image_processor: transformers' PIL image processor.
        weights: SHA-256 over all weights as loaded in float32, whatever file they came from; of a pair both of them.
        image_weights: the same of the image encoder alone.
        tokenizer_hash: SHA-256 over the tokenizer's vocabulary, merges and rules.
        load_seconds: how long loading took.
    """

    name: str
    family: Family
    model: Any  # a CLIPModel or its like; annotations inside transformers do not pass a strict check
    image_family: Family
    image_model: Any
    padding: int
    tokenizer: Any
    image_processor: Any
    weights: str
    image_weights: str
    tokenizer_hash: str
    load_seconds: float

    @property
    def device(self) -> Any:
        """Device of the model."""
        return self.model.device

    def identity(self) -> dict[str, str]:
        """The part of a store's identity that its encoder fixes."""
        return {"encoder": self.name, "weights": self.weights}


def load_clip(name: str, precision: Precision = "fp32", device: str = "cpu") -> Clip:
    """Load a CLIP.

    Args:
        name: ``tiny``, a directory that transformers saved, or a hub id such as ``openai/clip-vit-base-patch16``; a
            text encoder and the CLIP whose images it is for as ``TEXT+IMAGE``.
        precision: the arithmetic of both encoders.
        device: a torch device.

    Raises:
        UserError: not found (or no network), of a family that is not supported, not loadable, or in pickled weights.
    """
    started = time.monotonic()
    import torch
    import transformers

    _silence()
    text_folder, image_folder = find_both(name)
    image_family, image_model = load_model(image_folder, name)
    with _loading(name, "image processor"):
        make: Any = getattr(transformers, image_family.image_processor)
        image_processor = make.from_pretrained(image_folder, trust_remote_code=False)
    if text_folder == image_folder:
        family, model, weights = image_family, image_model, weights_hash(image_model)
    else:
        family, model = _text_encoder(name, text_folder)
        _require_one_space(name, family.joint_dim(model), image_family.joint_dim(image_model))
        # The image encoder's own folder comes last.
        weights = f"{weights_hash(model)}{PAIRED}{weights_hash(image_model)}"
    tokenizer = _tokenizer(name, text_folder, family, model)
    image_weights = weights_hash(image_model, image_family.image_side)
    for part in (model, image_model):
        part.train(False).requires_grad_(False)
        torch.nn.Module.to(part, device, torch.bfloat16 if precision == "bf16" else torch.float32)
    return Clip(
        name=name,
        family=family,
        model=model,
        image_family=image_family,
        image_model=image_model,
        padding=family.padding if family.padding is not None else tokenizer.pad_token_id,
        tokenizer=tokenizer,
        image_processor=image_processor,
        weights=weights,
        image_weights=image_weights,
        tokenizer_hash=_tokenizer_hash(tokenizer),
        load_seconds=time.monotonic() - started,
    )


def _silence() -> None:
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def load_model(folder: Path, name: str | None = None) -> tuple[Family, Any]:
    """Return the family of the CLIP in ``folder`` and its model, text and image encoder, in float32.

    Args:
        name: what errors call it; by default the folder.

    Raises:
        UserError: of a family that is not supported, damaged, incomplete, or in pickled weights.
    """
    import torch
    import transformers

    name = name or str(folder)
    _silence()
    with _loading(name, "configuration"):
        family = _family(name, folder)
        transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    require_safetensors(folder)
    with _loading(name, "weights"):
        model, loading = transformers.AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported by name below
            output_loading_info=True,
            trust_remote_code=False,
        )
    problem = _weights_problem(loading) or family.problem(model)
    if problem:
        raise _cannot_load(name, problem)
    return family, model


def _text_encoder(name: str, folder: Path) -> tuple[Family, Any]:
    from dptr.pipeline.clip.multilingual import Multilingual, load_text_encoder

    require_safetensors(folder)
    with _loading(name, "text encoder"):
        return Multilingual(), load_text_encoder(folder)


def _tokenizer(name: str, folder: Path, family: Family, model: Any) -> Any:
    with _loading(name, "tokenizer"):
        tokenizer = family.tokenizer(folder)
        spelt = tokenizer(_PROBES)["input_ids"]
    problem = _tokenizer_problem(tokenizer, spelt, family, model)
    if problem:
        raise _cannot_load(name, problem)
    return tokenizer


def _require_one_space(name: str, text: int, image: int) -> None:
    if text != image:
        raise UserError(
            f"the text vectors of {name} are {text} wide, its image vectors {image}",
            "Pair a text encoder with the CLIP whose joint space it was trained for",
        )


@contextlib.contextmanager
def _loading(name: str, part: str) -> Iterator[None]:
    """Keep the library quiet, and say in one line which part of a model it could not load."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except UserError:
        raise
    # On damaged files the library raises a dozen exception types, most of them of other libraries.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_CHARACTERS]
        raise _cannot_load(name, f"its {part} cannot be read ({reason})") from error


def _cannot_load(name: str, problem: str) -> UserError:
    return UserError(f"cannot load CLIP {name!r}: {problem}", "Give a directory with all of the model's files")


def _family(name: str, folder: Path) -> Family:
    kind = json.loads((folder / MODEL_CONFIG_FILE).read_text(encoding="utf-8")).get("model_type")
    if kind not in FAMILIES:
        raise UserError(
            f"{name} is a model of type {kind!r}",
            f"Supported are {', '.join(FAMILIES)}, and a text encoder of M-CLIP or sentence-transformers as TEXT+IMAGE",
        )
    return FAMILIES[kind]


def _weights_problem(loading: dict[str, Any]) -> str | None:
    """Say which weights do not fit; transformers draws such tensors at random, or leaves them out."""
    if loading["mismatched_keys"]:
        key, stored, expected = min(loading["mismatched_keys"])
        return f"its weights have {key} of shape {tuple(stored)}, its config.json says {tuple(expected)}"
    if loading["missing_keys"]:
        return f"its weights lack {min(loading['missing_keys'])}"
    layers = [key for key in loading["unexpected_keys"] if re.search(r"\.layers?\.\d+\.", key)]
    return f"its weights have {min(layers)}, a layer that its config.json does not have" if layers else None


def _tokenizer_problem(tokenizer: Any, spelt: list[list[int]], family: Family, model: Any) -> str | None:
    """Say why a tokenizer cannot be used; ``spelt`` are its tokens for :data:`_PROBES`."""
    if not tokenizer.is_fast:
        return "its tokenizer has no tokenizer.json, which is needed for token offsets"
    if len({token for row in spelt for token in row} - set(tokenizer.all_special_ids)) < len(_PROBES):
        return "it has no tokenizer, or one without letters"
    if family.padding is None and tokenizer.pad_token_id is None:
        return "its tokenizer has no padding token"
    largest, room = max(tokenizer.get_vocab().values()), family.vocabulary(model)
    return f"its tokenizer has token {largest}, its text model {room} of them" if largest >= room else None


def weights_hash(model: torch.nn.Module, prefixes: tuple[str, ...] = ("",)) -> str:
    """Return the SHA-256 over the names, shapes and values of a model's weights whose names begin so."""
    tensors = model.state_dict().items()
    return hash_tensors((name, tensor.contiguous().numpy()) for name, tensor in tensors if name.startswith(prefixes))


class ImageEncoder:
    """CLIP's image side: pictures to token embeddings and pooled vectors in the joint space.

    Attributes:
        tokens: of a picture. class_tokens: those of them, at the front, that stand nowhere in it. dim: their width.
    """

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._family, self._model = clip.image_family, clip.image_model
        self.tokens = self._family.image_tokens(self._model)
        self.class_tokens = self._family.class_tokens
        self.dim = self._family.joint_dim(self._model)
        #: Pictures that are encoded at once where nothing else is asked for.
        width = int(self._model.config.vision_config.hidden_size)
        self.batch = batch_for(self._model, width, self.tokens, PICTURES_PER_BATCH)
        self._halving = Halving("pictures")

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        """Resize, crop and normalise one picture as its CLIP expects, shape (3, height, width)."""
        return self._family.pixels(self._model, self._clip.image_processor, image.convert("RGB"))

    def preprocess_word(self, image: Image.Image) -> NDArray[np.float32]:
        """Stretch a word image to the encoder's square, as fine-tuning does: cut to a square it would lose its ends."""
        return self._family.stretched(self._model, self._clip.image_processor, image)

    def encode(self, pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Encode pictures.

        All tokens are taken to the joint space, as in the authors' code; CLIP itself does that with the class token
        only, which is the pooled vector.

        Args:
            pixels: shape (batch, 3, height, width).

        Returns:
            token embeddings (batch, tokens, dim) and pooled vectors (batch, dim), float32.
        """
        parts = self._halving.run(self._encode, pixels)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([tokens for tokens, _ in parts]), np.concatenate([pooled for _, pooled in parts])

    def _encode(self, pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        import torch

        with torch.inference_mode():
            inputs = torch.from_numpy(pixels).to(self._clip.device, self._model.dtype)
            tokens, pooled = self._family.image_embeddings(self._model, inputs)
            return tokens.float().cpu().numpy(), pooled.float().cpu().numpy()


def _tokenizer_hash(tokenizer: Any) -> str:
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    # Padding and truncation are call settings that change with use, not part of what the tokenizer is.
    rules.pop("padding", None)
    rules.pop("truncation", None)
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
