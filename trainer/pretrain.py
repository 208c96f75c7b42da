"""Stage 2: train a decoder to read labels from their text embeddings, without one image."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dptr.cache.errors import UserError
from dptr.cache.progress import note
from dptr.cache.row_set import RowSet
from dptr.cache.stores.manifest import Manifest, require_same_encoder
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.text.charset import Charset
from dptr.cache.validation import positions_of
from dptr.trainer.data.batch_order import BatchOrder, WeightedRows
from dptr.trainer.data.buckets import few_shapes, padded_memory, padded_targets
from dptr.trainer.data.noise import NoiseSource
from dptr.trainer.data.noisy_memory import noisy_memory
from dptr.trainer.data.stored_memory import StoredMemory
from dptr.trainer.metrics import score
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Decoder, Memory, Targets
from dptr.trainer.model.decoders.pooled import PooledDecoder
from dptr.trainer.predictions import keep_validation_predictions
from dptr.trainer.recipe import MemorySettings, PretrainSettings, Recipe
from dptr.trainer.seeds import generator_of
from dptr.trainer.training import loop, processes, runs
from dptr.trainer.training.loop import is_compiled
from dptr.trainer.training.runs import TrainingSummary, charset_of_run
from dptr.trainer.training.step_log import Tracker, observer

if TYPE_CHECKING:
    from dptr.cache.stores.neighbours import Neighbours


@dataclass(frozen=True)
class PromptBatch:
    """A batch of noisy memories with their labels."""

    memory: Memory | StoredMemory
    targets: Targets

    def to(self, device: torch.device) -> PromptBatch:
        """Return the batch on a device, its memory put together."""
        return PromptBatch(self.memory.to(device), self.targets.to(device))

    def padded(self, positions: int) -> PromptBatch:
        """Return the batch in one of few shapes, its labels with at most ``positions``, the end's included."""
        return PromptBatch(padded_memory(self.memory), padded_targets(self.targets, positions))

    def pin_memory(self) -> PromptBatch:
        """Return a copy from which a GPU takes it while it computes."""
        return PromptBatch(self.memory.pin_memory(), self.targets.pin_memory())


@dataclass(frozen=True)
class CountWeights:
    """Weights of a store's rows: their labels' counts to a power, 0 for those not among ``rows``."""

    store: PromptStore
    rows: RowSet
    power: float

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the weights of ``rows``, of the same shape."""
        return np.where(self.rows.holds(rows), self.store.counts_of(rows).astype(np.float64) ** self.power, 0.0)


class PromptBatches:
    """Batch number -> :class:`PromptBatch`; a pure function of the recipe's seed and the number."""

    def __init__(
        self,
        store: PromptStore,
        noise: NoiseSource | None,
        rows: RowSet,
        recipe: Recipe,
        charset: Charset | None = None,
    ) -> None:
        """Labels are encoded with the run's ``charset``; None: the store's."""
        settings = recipe.pretrain
        weighted = None
        if settings.sampling == "count":
            weighted = WeightedRows(len(store), CountWeights(store, rows, settings.count_power))
        # The decoder's work grows with the label, the memory's with the tokens; labels cost more.
        self._order = BatchOrder(rows, store.label_lengths_of, settings.batch_size, settings.seed, weighted)
        self._store = store
        self._noise = noise
        self._ratio = recipe.noise.ratio
        self._memory = recipe.memory
        self._seed = settings.seed
        self._charset = charset or store.charset

    def __call__(self, number: int) -> PromptBatch:
        """Return batch ``number``, counted from 0 through all epochs."""
        rows = self._order.rows_of(number)
        generator = generator_of(self._seed, "noise", number)
        memory = noisy_memory(self._store, rows, self._noise, self._ratio, generator, self._memory)
        return PromptBatch(memory, Targets.of(self._store.labels_of(rows), self._charset))

    def require_finite(self, number: int) -> None:
        """Check what batch ``number`` was made of.

        Raises:
            DamagedStore: a row of the store or the bank holds NaN or infinity; the error names it.
        """
        self._store.require_finite(self._order.rows_of(number))
        if self(number).memory.to("cpu").tokens.isfinite().all():
            return
        # Noise, or the mean by which pooled vectors are centred.
        for store in [self._store] if self._noise is None else [self._store, self._noise.bank]:
            store.require_finite(np.arange(len(store)))


def data_identity(store: PromptStore, bank: OrpBank | None) -> dict[str, Any]:
    """What a run saves about its stores, so that it notices when they change."""
    return {name: manifest.fingerprint() for name, manifest in _manifests(store, bank).items()}


def _manifests(store: PromptStore, bank: OrpBank | None) -> dict[str, Manifest]:
    return {"prompts": store.manifest} | ({"orp": bank.manifest} if bank is not None else {})


def pretrain(
    store: PromptStore,
    bank: OrpBank | None,
    neighbours: Neighbours | None,
    recipe: Recipe,
    out: Path,
    device: str | torch.device = "cpu",
    track: Tracker | None = None,
) -> TrainingSummary:
    """Train a decoder on a prompt store, with noise from a bank when there is one; a rerun resumes it.

    Raises:
        DamagedStore: the stores do not belong together, or ``out`` holds another run.
        UserError: the recipe does not fit the store, or names another CLIP, context or charset.
    """
    started = time.monotonic()
    if bank is not None:
        require_same_encoder(store.manifest, bank.manifest)
        _require_same_width(store, bank)
    with processes.first_before_others():
        _require_pinned(store, recipe.pretrain)
        _require_room(store, recipe)
    for embeddings in [store] if bank is None else [store, bank]:
        embeddings.check_embeddings()
    data = data_identity(store, bank)
    clip = store.manifest.identity
    charset = charset_of_run(store.charset, recipe.decoder)
    with processes.first_before_others():
        run = runs.start_or_continue(
            out, "pretrain", recipe, charset, store.dim, data, clip["encoder"], clip["weights"]
        )
    device = torch.device(device)
    torch.manual_seed(recipe.pretrain.seed)
    decoder = _new_decoder(store, bank, recipe).to(device)
    noise = None if bank is None else NoiseSource(bank, recipe.noise, neighbours)
    validation, training = split_rows(store, recipe)
    _tell_of_fewer(len(validation), store, recipe)
    batches = PromptBatches(store, noise, training, recipe, charset)
    task = loop.Task(
        model=decoder,
        batch=few_shapes(batches, recipe.decoder.max_label_length) if is_compiled(recipe.pretrain, device) else batches,
        loss=lambda batch: decoder.loss(batch.memory, batch.targets),
        validate=lambda model: validate(model, store, noise, validation, recipe, charset, device, out),
        rows=lambda batch: len(batch.targets.inputs),
        groups=[loop.ParameterGroup(list(decoder.parameters()))],
        observers=[observer(track, out)] if track and processes.is_first() else [],
        require_finite=batches.require_finite,
    )
    steps_before = run.step()
    state = loop.run(out, task, recipe.pretrain, device)
    return TrainingSummary(
        out=out,
        rows=len(training),
        computed=(state.step - steps_before) * recipe.pretrain.batch_size * recipe.pretrain.accumulate,
        quarantined=0,
        steps=state.step,
        seconds=time.monotonic() - started,
        metrics=state.metrics,
    )


def validate(
    model: nn.Module,
    store: PromptStore,
    noise: NoiseSource | None,
    rows: NDArray[np.int64],
    recipe: Recipe,
    charset: Charset,
    device: torch.device,
    run: Path | None = None,
) -> dict[str, float]:
    """Decode the labels of ``rows`` (rows,) from clean and from noisy embeddings, case-insensitively.

    CLIP folds case, so embeddings do not encode it; ``accuracy_with_case`` is that of labels as they are. Predictions
    from clean embeddings is kept in the folder ``run``, if one is named.
    """
    labels, units = store.labels_of(rows), store.charset.units
    clean = read_prompts(model, store, rows, None, 0.0, recipe.memory, device, charset)
    if run is not None:
        keep_validation_predictions(run, labels, clean, units)
    folded = [label.lower() for label in labels]
    result = score(folded, [text.lower() for text in clean], units=units)
    metrics = {
        "score": result.accuracy,
        "accuracy": result.accuracy,
        "character_error_rate": result.character_error_rate,
        "accuracy_with_case": score(labels, clean).accuracy,
    }
    if noise is not None:
        ratio, seed = recipe.noise.ratio, recipe.pretrain.seed
        noisy = read_prompts(model, store, rows, noise, ratio, recipe.memory, device, charset, seed=seed)
        metrics["accuracy_with_noise"] = score(folded, [text.lower() for text in noisy]).accuracy
    return metrics


@torch.inference_mode()
def read_prompts(
    model: nn.Module,
    store: PromptStore,
    rows: NDArray[np.int64],
    noise: NoiseSource | None,
    ratio: float,
    kind: MemorySettings,
    device: torch.device,
    charset: Charset | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> list[str]:
    """Read labels, shape (rows,), back out of their text embeddings, as memories of ``kind``, in the order of ``rows``.

    ``charset`` is the decoder's; None: the store's. ``seed`` is that of the noise.
    """
    if not isinstance(model, Decoder):
        raise TypeError(f"{type(model).__name__} is not a decoder")
    model.eval()
    texts: list[str] = []
    for number, start in enumerate(range(0, len(rows), batch_size)):
        generator = generator_of(seed, "validation noise", number)
        memory = noisy_memory(store, rows[start : start + batch_size], noise, ratio, generator, kind).to(device)
        texts += decode_texts(model.decode(memory), charset or store.charset)
    return texts


def decode_texts(logits: Tensor, charset: Charset) -> list[str]:
    """Turn logits (batch, length, classes) into texts."""
    return [charset.decode(row) for row in logits.argmax(-1).cpu().numpy()]


def _tell_of_fewer(rows: int, store: PromptStore, recipe: Recipe) -> None:
    """Note when fewer labels are validated on than the recipe has."""
    settings = recipe.pretrain
    if rows < settings.validation_rows != type(settings).model_fields["validation_rows"].default:
        note(
            f"validating on {rows:,} labels, not {settings.validation_rows:,} (pretrain.validation_rows): of "
            f"{len(store):,} rows, pretrain.validation_share = {settings.validation_share:g} leaves no more"
        )


def _new_decoder(store: PromptStore, bank: OrpBank | None, recipe: Recipe) -> Decoder:
    """Return an untrained decoder; one of pooled vectors learns here how images are to be centred."""
    decoder = build_decoder(recipe.decoder, len(store.charset.characters), store.dim, recipe.memory)
    if isinstance(decoder, PooledDecoder) and recipe.memory.centred:
        if bank is None:
            raise UserError(
                "pooled vectors of images are centred by the ORP bank's mean, and there is no bank",
                "Run `dptr build-orp-bank PHOTOS`, or go without: --set memory.centred=false",
            )
        decoder.image_mean.copy_(torch.from_numpy(bank.pooled_mean))
    return decoder


def _require_same_width(store: PromptStore, bank: OrpBank) -> None:
    if store.dim != bank.dim:
        raise UserError(
            f"text embeddings are {store.dim} wide and image embeddings {bank.dim}",
            "Embed the text with --embeddings projected",
        )


def _require_pinned(store: PromptStore, settings: PretrainSettings) -> None:
    """Reject a prompt store made with another CLIP, context or charset than the recipe names."""
    has = {"clip": store.manifest.identity["encoder"], "context": store.manifest.identity.get("context", "content")}
    for key, value in has.items():
        wanted = getattr(settings, key)
        if wanted and wanted != value:
            raise _pinned(store, key, wanted, value)
    if settings.charset and not Charset.named(settings.charset).same_units_as(store.charset):
        raise _pinned(store, "charset", settings.charset, f"one of {len(store.charset.characters)} characters")


def _pinned(store: PromptStore, key: str, wanted: str, found: str) -> UserError:
    return UserError(
        f"the recipe needs prompts made with --{key} {wanted}, those in {store.folder} have {found}",
        f"Run `dptr embed-text` with --{key} {wanted} -o OTHER, or train on these: --set 'pretrain.{key}=\"\"'",
    )


def _require_room(store: PromptStore, recipe: Recipe) -> None:
    if recipe.decoder.memory_dim not in (0, store.dim):
        raise UserError(
            f"decoder.memory_dim is {recipe.decoder.memory_dim}, the store's embeddings are {store.dim} wide",
            "Set it to 0",
        )
    longest = store.longest_label
    if longest > recipe.decoder.max_label_length:
        raise UserError(
            f"the store has labels of {longest} characters, the recipe reads {recipe.decoder.max_label_length}",
            f"Use --set decoder.max_label_length={longest}",
        )
    if recipe.memory.kind == "columns" and longest > recipe.memory.columns:
        raise UserError(
            f"the store has labels of {longest} characters, the memory {recipe.memory.columns} columns",
            f"Use --set memory.columns={2 * longest}",
        )


_PLACES = 1 << 32


def split_rows(store: PromptStore, recipe: Recipe) -> tuple[NDArray[np.int64], RowSet]:
    """Return the rows to validate on, at most ``validation_rows`` of those that are for it, and the rows to train on.

    A label's side depends on the label and the seed alone, case-insensitive: variants of case are never on both sides,
    and growth of the store moves none. Made-up words are all for training: their accuracy does not describe the
    store's language. Those to validate on are row numbers, int64 of shape (rows,), rising.

    Raises:
        UserError: the store has too few labels.
    """
    settings = recipe.pretrain
    lowest = _Lowest(settings.validation_rows)

    limit = np.uint32(settings.validation_share * _PLACES)

    def trained_on() -> Iterator[NDArray[np.bool_]]:
        first = 0
        columns = store.rows.column("label_hash"), store.rows.column("made_up")
        for hashes, made_up in zip(*columns, strict=True):
            positions = positions_of(hashes, settings.seed)
            chosen = (positions < limit) & (made_up == 0)
            lowest.add(first + np.flatnonzero(chosen), positions[chosen])
            first += len(positions)
            yield ~chosen

    training = RowSet(trained_on())
    if not len(lowest.rows) or not len(training):
        raise UserError(
            f"{store.folder} has {len(store)} rows, too few to keep {settings.validation_share:g} for validation",
            "Embed at least 100 labels, or change pretrain.validation_share",
        )
    return np.sort(lowest.rows), training


class _Lowest:
    """The ``count`` rows of the lowest positions, of two equal ones the first."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.rows = np.zeros(0, np.int64)
        self._positions: NDArray[Any] = np.zeros(0)

    def add(self, rows: NDArray[np.int64], positions: NDArray[Any]) -> None:
        positions = np.concatenate([self._positions, positions])
        kept = np.argsort(positions, kind="stable")[: self._count]
        self.rows, self._positions = np.concatenate([self.rows, rows])[kept], positions[kept]
