"""The recogniser: image encoder, Feature Merge Unit and decoder, with the charset it reads in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.text.charset import Charset
from dptr.cache.text.lexicon import DEFAULT_WEIGHT, Lexicon
from dptr.trainer.model.beam_search import Candidate, search
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Decoder, Memory, Targets
from dptr.trainer.model.decoders.ctc import CtcDecoder, ctc_loss
from dptr.trainer.model.decoders.pooled import PooledDecoder, directions
from dptr.trainer.model.encoders import build_encoder
from dptr.trainer.model.encoders.base import Encoder, GivenTokens
from dptr.trainer.model.encoders.clip import ClipEncoder
from dptr.trainer.model.fmu import FeatureMergeUnit
from dptr.trainer.model.folding import fold_batch_norms, halve
from dptr.trainer.model.language_model import CharacterModel, format_model, is_code
from dptr.trainer.model.layers import grid_positions
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


#: Confidence from which a text is taken as it is, whatever words there are: of words, and of codes with formats.
_SURE, _SURE_OF_CODES = 0.9, 0.99
#: Encoders that give an image's pooled vector themselves.
_POOLING = (ClipEncoder, GivenTokens)


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        text: the characters. confidence: product of the probabilities of all characters and the end.
        character_confidences: one for each unit of ``text``, a character or what a person sees as one.
    """

    text: str
    confidence: float
    character_confidences: list[float]


class Recognizer(nn.Module):
    """Word images to text.

    Args:
        recipe: sizes of all parts. charset: what it can read.
        memory_dim: width of the memory its decoder reads, that of the text embeddings it was pre-trained on.
        encoder: in place of the recipe's.
    """

    def __init__(self, recipe: Recipe, charset: Charset, memory_dim: int, encoder: Encoder | None = None) -> None:
        super().__init__()
        self.charset = charset
        self.encoder: Encoder = encoder if encoder is not None else build_encoder(recipe.encoder)
        self.fmu = _merging(recipe, self.encoder, memory_dim)
        self.decoder: Decoder = build_decoder(recipe.decoder, len(charset.characters), memory_dim, recipe.memory)
        self._adds_places = not (self.encoder.positioned or self.decoder.positions_memory)
        self._in_bfloat16 = False
        self._words: CharacterModel | None = None
        self._codes: CharacterModel | None = None
        self.ctc_weight = recipe.finetune.ctc_weight
        has_head = self.ctc_weight > 0 and not isinstance(self.decoder, CtcDecoder)
        self.ctc_head = nn.Linear(self.encoder.dim, self.decoder.classes) if has_head else None

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images it takes."""
        return self.encoder.size

    def memory(self, images: Tensor) -> Memory:
        """Encode images (batch, 3, height, width), uint8 or already in [-1, 1]."""
        return self._encoded(images)[1]

    def loss(self, images: Tensor, targets: Targets) -> Tensor:
        """Return the training loss, a scalar, on labelled images, shape as in :meth:`memory`.

        It is the decoder's, and the weighted CTC loss where there is one.
        """
        tokens, memory = self._encoded(images)
        loss = self.decoder.loss(memory, targets)
        return loss if self.ctc_head is None else loss + self.ctc_weight * self._ctc_loss(tokens, targets)

    def tokens(self, images: Tensor) -> Tensor:
        """Encode images, shape as in :meth:`memory`, to the encoder's tokens (batch, tokens, dim)."""
        tokens: Tensor = self.encoder(_scaled(images))
        return tokens

    def _encoded(self, images: Tensor) -> tuple[Tensor, Memory]:
        """Return the encoder's tokens, and the memory for the decoder."""
        if not isinstance(self.decoder, PooledDecoder):
            tokens = self.tokens(images)
            return tokens, Memory(self.fmu(self._positioned(tokens)))
        if isinstance(self.encoder, _POOLING):
            tokens, pooled = self.encoder.tokens_and_pooled(_scaled(images))
            return tokens, Memory(directions(pooled, self.decoder.image_mean)[:, None])
        tokens = self.tokens(images)
        return tokens, Memory(directions(self.fmu(self._positioned(tokens)), None))

    def _positioned(self, tokens: Tensor) -> Tensor:
        """Add where tokens (batch, tokens, dim) stand, unless the encoder or the decoder does."""
        if not self._adds_places:
            return tokens
        rows = self.encoder.grid[0]
        places = grid_positions(rows, tokens.shape[1] // rows, tokens.shape[2], tokens.device).to(tokens)
        return tokens + places

    def _ctc_loss(self, tokens: Tensor, targets: Targets) -> Tensor:
        """CTC over the columns of the token grid, averaged over its rows; the end's class serves as the blank."""
        by_row = tokens.view(len(tokens), self.encoder.grid[0], -1, tokens.shape[2])
        logits = self.ctc_head(by_row.mean(1))  # type: ignore[misc]
        return ctc_loss(logits, targets.of_columns, torch.full_like(targets.outputs[:, 0], logits.shape[1]))

    def read_in_bfloat16(self) -> None:
        """Read in half precision from now on, as well, and twice as fast where there are instructions for it.

        What it gives differs in the third digit; it cannot be trained any further.
        """
        self._in_bfloat16 = True
        halve(self)

    def prefer_words(self, counts: Mapping[str, float] | None, weight: float = DEFAULT_WEIGHT) -> None:
        """Prefer, where a picture leaves doubt, what is likely among words from now on; None: nothing.

        Predictions with a digit and no space are corrected by the format of codes among the words, such as number
        plates, where that predicts codes better than their characters do.

        Args:
            counts: word -> how often it occurs. weight: of the language model.

        Raises:
            UserError: the decoder is not CTC; the others have learnt from their text what follows what.
        """
        if counts is not None:
            require_ctc(isinstance(self.decoder, CtcDecoder))
        self._words = None if counts is None else CharacterModel(counts, self.charset, weight)
        self._codes = None if counts is None else format_model(counts, self.charset, weight)

    @torch.inference_mode()
    def read(self, images: Tensor) -> list[Prediction]:
        """Read a batch of images, shape as in :meth:`memory`; the module should be in evaluation mode."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._in_bfloat16):
            memory = self.memory(images)
            if isinstance(self.decoder, CtcDecoder):
                log_probabilities = self.decoder(memory).float().log_softmax(-1)
            else:
                confidences, ids = self.decoder.decode(memory).float().softmax(-1).max(-1)
        if isinstance(self.decoder, CtcDecoder):
            return self._in_columns(self.decoder, log_probabilities.cpu().numpy())
        rows = zip(ids.cpu().numpy(), confidences.cpu().numpy(), strict=True)
        return [_reading(row, certain, self.charset) for row, certain in rows]

    def _in_columns(self, decoder: CtcDecoder, log_probabilities: NDArray[np.float32]) -> list[Prediction]:
        """Read log-probabilities of columns (batch, columns, classes), with words where that leaves doubt."""
        predictions = [_reading(*decoder.joined(columns), self.charset) for columns in log_probabilities]
        if self._words is None:
            return predictions
        unsure: dict[CharacterModel, list[int]] = {}
        for index, prediction in enumerate(predictions):
            if self._codes is not None and is_code(prediction.text):
                model, sure = self._codes, _SURE_OF_CODES
            else:
                model, sure = self._words, _SURE
            if prediction.confidence < sure and _has_words_for(prediction, model):
                unsure.setdefault(model, []).append(index)
        for model, indices in unsure.items():
            found = search([log_probabilities[index] for index in indices], model)
            for index, candidates in zip(indices, found, strict=True):
                predictions[index] = _among(candidates, self.charset)
        return predictions


def _has_words_for(prediction: Prediction, words: CharacterModel) -> bool:
    """Return whether words may correct a prediction: those without digits do not correct one with some."""
    return words.has_digits or not any(map(str.isdigit, prediction.text))


def require_ctc(has_ctc: bool, name: str = "this recogniser") -> None:
    """Reject words for a decoder that is not CTC.

    Raises:
        UserError: it is another.
    """
    if not has_ctc:
        raise UserError(
            f"a lexicon needs a CTC decoder, {name} has another", 'Leave out --lexicon, or give "none" for them'
        )


def _merging(recipe: Recipe, encoder: Encoder, memory_dim: int) -> nn.Module:
    """Return what turns the encoder's tokens into the memory."""
    fmu, pooled = recipe.fmu, recipe.memory.kind == "pooled"
    if pooled and isinstance(encoder, _POOLING):
        # The encoder has merged its tokens itself; there is nothing left to do.
        if encoder.dim != memory_dim:
            raise UserError(
                f"the image encoder's vectors are {encoder.dim} wide, the decoder reads {memory_dim}",
                "Use the CLIP that the text was embedded with",
            )
        return nn.Identity()
    if fmu.kind == "none" and not pooled:
        # Without merging, all image tokens are the memory; only their width has to fit.
        return nn.Identity() if encoder.dim == memory_dim else nn.Linear(encoder.dim, memory_dim)
    if memory_dim % fmu.heads:
        raise UserError(
            f"the memory is {memory_dim} wide, not a multiple of fmu.heads = {fmu.heads}", "Change fmu.heads"
        )
    if len(encoder.widths) > 1:
        raise UserError(
            "queries of the Feature Merge Unit start at the columns of one width, encoder.image_widths gives several",
            "Leave image_widths empty, or set fmu.kind = none",
        )
    return FeatureMergeUnit(encoder.dim, memory_dim, encoder.grid[1], fmu, queries=1 if pooled else None)


def _scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def load_recognizer(run: Trained, device: str = "cpu") -> Recognizer:
    """Load the recogniser of a fine-tuning run or a file, with its lexicon; it cannot be trained any further.

    Raises:
        UserError: the run has no checkpoint yet. DamagedStore: its checkpoint is damaged.
    """
    recognizer = Recognizer(run.recipe, run.charset, run.memory_dim)
    try:
        recognizer.load_state_dict(run.weights())
    except RuntimeError as error:
        advice = "Restore it from a copy, or train or export it again"
        raise DamagedStore(f"the weights of {run.name} are not those of a model of its recipe", advice) from error
    recognizer.eval()
    fold_batch_norms(recognizer)
    if lexicon := run.lexicon():
        recognizer.prefer_words(lexicon.counts, lexicon.weight)
    return recognizer.to(device)


def _reading(ids: NDArray[np.int64], confidences: NDArray[np.float32], charset: Charset) -> Prediction:
    text, places = charset.decode_with_places(ids)
    counted = confidences[: len(places) + 1]
    return Prediction(text, float(counted.prod()), confidences[places].tolist())


def _among(candidates: Sequence[Candidate], charset: Charset) -> Prediction:
    """Return the likeliest candidate; a character is as certain as candidates agree who agreed up to it."""
    classes, share = candidates[0]
    agreed = [sum(part for text, part in candidates if text[:n] == classes[:n]) for n in range(len(classes) + 1)]
    confidences = [after / before for before, after in pairwise(agreed)]
    text, places = charset.decode_with_places(np.array(classes, np.int64))
    return Prediction(text, share, [confidences[place] for place in places])
