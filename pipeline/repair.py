"""Repair of a store: its commands run again in a scratch folder and compute only damaged shards.

Results must have the old hashes, because runs that were trained on the store are tied to them; other results are
discarded and reported. Prompts with an undamaged catalogue are read from it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dptr.cache.errors import DptrError, UserError
from dptr.cache.file_names import PREFIX_FILE, ROWS_FILE
from dptr.cache.progress import note
from dptr.cache.stores.files import flush, temporary_beside
from dptr.cache.stores.lock import locked
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.prompt_rows import write_rows_file
from dptr.cache.text.charset import Charset
from dptr.cache.text.normalization import Normalization
from dptr.pipeline.executors.executor import Part
from dptr.pipeline.executors.store_builder import INPUTS, Repair, place_of

if TYPE_CHECKING:
    from dptr.pipeline.text.embed_text import EmbedTextSettings


def repair(folder: Path, files: Collection[str]) -> list[str]:
    """Compute the damaged ``files`` of a store again; return the reasons for those that could not be repaired.

    Raises:
        UserError: another process writes the store, or it cannot be written.
    """
    manifest = Manifest.read(folder)
    known = dict(manifest.files)
    for shard in manifest.shards:
        known |= shard.files
    problems: list[str] = []
    with locked(folder):
        scratch = temporary_beside(folder / "repair")
        try:
            try:
                if computed := frozenset(files) - {ROWS_FILE}:
                    _run_again(folder, manifest, computed, scratch)
            except DptrError as error:
                problems.append(str(error))
            # Rows come last: they are derived from the repaired catalogues.
            for name in sorted(files, key=lambda name: (name == ROWS_FILE, name)):
                problems += _put_back(scratch / name, folder, manifest, known[name])
            flush(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return problems


def _run_again(folder: Path, manifest: Manifest, files: frozenset[str], scratch: Path) -> None:
    """Run the store's commands in their original order into ``scratch``.

    Raises:
        UserError: an input is missing. DamagedStore: the CLIP differs.
    """
    lost = [number for number, shard in enumerate(manifest.shards) if shard.files.keys() & files]
    if manifest.kind == "prompts":
        lost = _embed_catalogues(folder, manifest, files, scratch, lost)
    part = Repair(store=folder, manifest=manifest, lost=tuple(lost))
    for entry in _inputs_of(folder, manifest) if lost else ():
        _AGAIN[manifest.kind](manifest.identity, entry, scratch, part)


def _inputs_of(folder: Path, manifest: Manifest) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = manifest.details.get(INPUTS, [])
    if not entries:
        raise UserError(f"{folder} records no inputs", "Run its command again")
    for entry in entries:
        for path in entry["paths"]:
            if not Path(path).exists():
                raise UserError(
                    f"{path}, from which {folder} was made, is gone",
                    f"Put it back; paths are relative to {entry['folder']}",
                )
    return entries


def _put_back(made: Path, folder: Path, manifest: Manifest, known: Any) -> list[str]:
    """Move a recomputed file into the store if its hash is right, else return the problem."""
    lost = folder / made.name
    if made.name == ROWS_FILE:
        try:
            made.parent.mkdir(exist_ok=True)
            write_rows_file(made, folder, manifest)
        except DptrError as error:
            return [str(error)]
    if not made.is_file():
        return [f"{lost} was not made again"]
    if known.problem(made) is not None:
        return [f"{lost} has another hash now: its inputs, CLIP or this machine differ"]
    flush(made)
    os.replace(made, lost)
    note(f"{lost} is unchanged")
    return []


def _text_settings(identity: dict[str, Any], entry: dict[str, Any]) -> EmbedTextSettings:
    from dptr.pipeline.text.corpus import CorpusSettings
    from dptr.pipeline.text.embed_text import EmbedTextSettings
    from dptr.pipeline.text.templates import from_store

    rules = {**entry["corpus"], "normalization": Normalization(**entry["corpus"]["normalization"])}
    return EmbedTextSettings(
        corpus=CorpusSettings(**{**rules, "charset": Charset.from_text(identity["charset"])}),
        clip=identity["encoder"],
        templates=from_store(identity["template"]),
        **{name: identity[name] for name in ("embeddings", "context", "precision", "dtype")},
        **{name: entry[name] for name in ("shard_rows", "tokens_per_batch", "seed")},
    )


def _embed_text(identity: dict[str, Any], entry: dict[str, Any], out: Path, part: Part) -> None:
    from dptr.pipeline.text.embed_text import embed_text

    embed_text(entry["paths"], out, _text_settings(identity, entry), part)


def _embed_catalogues(
    folder: Path, manifest: Manifest, files: Collection[str], scratch: Path, lost: Sequence[int]
) -> list[int]:
    """Embed the prompts of whole catalogues, and what all prompts share; return the shards whose catalogue is lost."""
    from dptr.pipeline.text.embed_text import (
        encode,
        load_encoders,
        prompts_in,
        write_prefix_embeddings,
        write_prompt_shard,
    )

    kept = [number for number in lost if manifest.shards[number].catalogue not in files]
    if kept or PREFIX_FILE in files:
        settings = _text_settings(manifest.identity, manifest.details[INPUTS][-1])
        encoders, found, _ = load_encoders(settings)
        manifest.require_equal(folder, {"weights": found["weights"], "tokenizer": found["tokenizer"]})
        if PREFIX_FILE in files:
            write_prefix_embeddings(scratch / PREFIX_FILE, encoders)
        for number in kept:
            prompts = prompts_in(folder / manifest.shards[number].catalogue)
            write_prompt_shard(
                scratch, place_of(manifest, number), prompts, encode(encoders, prompts, settings), settings
            )
    return [number for number in lost if number not in kept]


def _build_orp_bank(identity: dict[str, Any], entry: dict[str, Any], out: Path, part: Part) -> None:
    from dptr.pipeline.photos.build_orp_bank import OrpBankSettings, build_orp_bank

    settings = OrpBankSettings(
        clip=identity["encoder"],
        **identity["crops"],
        **{name: identity[name] for name in ("precision", "tokens_per_crop", "seed", "dtype")},
        **{name: entry[name] for name in ("shard_rows", "batch", "exclude_threshold")},
        exclude_near=tuple(map(Path, entry["exclude_near"])),
    )
    build_orp_bank([Path(path) for path in entry["paths"]], out, settings, part)


def _embed_crops(identity: dict[str, Any], entry: dict[str, Any], out: Path, part: Part) -> None:
    from dptr.pipeline.embed_crops import EmbedCropsSettings, embed_crops

    settings = EmbedCropsSettings(
        clip=identity["encoder"],
        charset=entry["charset"],
        normalization=Normalization(**identity["normalization"]),
        **{name: identity[name] for name in ("copies", "augmentation", "seed", "precision", "dtype")},
        **{name: entry[name] for name in ("shard_rows", "batch")},
    )
    embed_crops([Path(path) for path in entry["paths"]], out, settings, part)


_AGAIN: dict[str, Callable[[dict[str, Any], dict[str, Any], Path, Part], None]] = {
    "prompts": _embed_text,
    "orp": _build_orp_bank,
    "image_features": _embed_crops,
}
