"""Repairs a store: damaged shards, and nothing else, are computed again from the inputs, and must have the old hashes.

What cannot be made equal is left as it is and named: a shard of other bits under an old hash would be false, and under
a new one the runs that were trained on the store would no longer match it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from dptr.cache.errors import DptrError
from dptr.cache.file_names import ROWS_FILE
from dptr.cache.progress import note
from dptr.cache.stores.files import flush, temporary_beside
from dptr.cache.stores.lock import locked
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.prompt_rows import write_rows_file
from dptr.pipeline.repair import crop_shards, photo_shards, prompt_shards
from dptr.pipeline.repair.losses import Losses

_REBUILD: dict[str, Callable[[Losses, Path], None]] = {
    "prompts": prompt_shards.rebuild,
    "orp": photo_shards.rebuild,
    "word_crops": crop_shards.rebuild,
}


def repair(folder: Path, files: Collection[str]) -> list[str]:
    """Compute the shards again to which damaged ``files`` belong; return why, for those that are left as they are.

    Raises:
        UserError: another process writes the store.
    """
    manifest = Manifest.read(folder)
    known = dict(manifest.files)
    for shard in manifest.shards:
        known |= shard.files
    problems: list[str] = []
    with locked(folder):
        scratch = temporary_beside(folder / "repair")
        scratch.mkdir()
        try:
            try:
                if computed := frozenset(files) - {ROWS_FILE}:
                    _REBUILD[manifest.kind](Losses(folder, manifest, computed), scratch)
            except DptrError as error:
                problems.append(str(error))
            for name in sorted(files, key=lambda name: (name == ROWS_FILE, name)):
                made = scratch / name
                if name == ROWS_FILE:
                    problems += _make_rows(made, folder, manifest)
                if not made.is_file():
                    problems.append(f"{folder / name} was not made again")
                elif known[name].problem(made) is not None:
                    problems.append(f"{folder / name} comes out otherwise: its inputs, CLIP or this machine are others")
                else:
                    flush(made)
                    os.replace(made, folder / name)
                    note(f"{folder / name} is as it was")
            flush(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return problems


def _make_rows(path: Path, folder: Path, manifest: Manifest) -> list[str]:
    """Derive the rows from the catalogues, which come first: those that were damaged are as they were by now."""
    try:
        write_rows_file(path, folder, manifest)
    except DptrError as error:
        return [str(error)]
    return []
