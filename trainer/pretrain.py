"""Stage 2: train a decoder to predict labels from their text embeddings, without images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dptr.cache.errors import UserError
from dptr.cache.progress import note
from dptr.cache.stores.manifest import require_same_encoder
from dptr.cache.stores.orp import OrpBank
from dptr.cache.stores.prompts import PromptStore
from dptr.cache.text.charset import Charset
from dptr.trainer.choices import Tracker
from dptr.trainer.data.prompt_batches import NoiseSource, PromptBatches, noisy_memory, split_rows
from dptr.trainer.evaluate import keep_validation_predictions
from dptr.trainer.metrics import score
from dptr.trainer.model.decoders import build_decoder
from dptr.trainer.model.decoders.base import Decoder
from dptr.trainer.model.decoders.pooled import PooledDecoder
from dptr.trainer.recipe import MemorySettings, PretrainSettings, Recipe
from dptr.trainer.seeds import generator_of
from dptr.trainer.training import loop, processes, runs

if TYPE_CHECKING:
    from dptr.cache.stores.neighbours import Neighbours


def data_identity(store: PromptStore, bank: OrpBank | None) -> dict[str, Any]:
    """Identity of a run's stores, by which it detects that they have changed."""
    return {"prompts": store.manifest.fingerprint()} | ({"orp": bank.manifest.fingerprint()} if bank else {})


def pretrain(
    store: PromptStore,
    bank: OrpBank | None,
    neighbours: Neighbours | None,
    recipe: Recipe,
    out: Path,
    device: str | torch.device = "cpu",
    track: Tracker | None = None,
) -> runs.TrainingSummary:
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
    charset = runs.charset_of_run(store.charset, recipe.decoder)
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
        batch=batches,
        loss=lambda batch: decoder.loss(batch.memory.to(device), batch.targets),
        validate=lambda model: validate(model, store, noise, validation, recipe, charset, device, out),
        groups=[loop.ParameterGroup(list(decoder.parameters()))],
        longest_label=recipe.decoder.max_label_length,
        track=track,
        require_finite=batches.require_finite,
    )
    steps_before = run.step()
    state = loop.run(out, task, recipe.pretrain, device)
    return runs.TrainingSummary(
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
