"""`dptr merge`: the parts of a store, or of rendered crops, become one, to the same bytes as without parts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import MANIFEST_FILE, ROWS_FILE
from dptr.cache.progress import progress
from dptr.cache.stores.files import atomic_path
from dptr.cache.stores.lock import locked
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.prompt_rows import write_rows
from dptr.cache.stores.shard_record import Shard
from dptr.cache.word_images.parquet_form import ParquetSource
from dptr.cache.word_images.writer import write_word_images
from dptr.pipeline.parts.part import Part, parts_folder
from dptr.pipeline.parts.store_in_making import SHARE

_CROPS = ".parquet"


@dataclass(frozen=True)
class MergeSummary:
    """What was merged: ``rows`` are all of ``out``, ``computed`` those of its parts."""

    out: Path
    rows: int
    computed: int
    parts: int


def merge(out: Path) -> MergeSummary:
    """Commit the parts of ``out``, which lie beside it, and remove them.

    Raises:
        UserError: there are none, or one is missing or not finished. DamagedStore: one is damaged.
    """
    folder = parts_folder(out)
    found = sorted(path for path in folder.glob("*-of-*") if not path.name.startswith("."))
    if not found:
        raise UserError(f"no parts in {folder}", f"Run the command that makes {out} with --part 1/2, then 2/2")
    parts = [_part_of(path) for path in found]
    _require_all(out, parts)
    if all(path.suffix == _CROPS for path in found):
        summary = _merge_crops(out, found)
    else:
        with locked(out):
            summary = _merge_store(out, found)
    shutil.rmtree(folder)
    return summary


def _part_of(path: Path) -> Part:
    number, _, of = path.name.removesuffix(_CROPS).partition("-of-")
    return Part.named(f"{int(number)}/{of}")


def _require_all(out: Path, parts: Sequence[Part]) -> None:
    counts = sorted({part.of for part in parts})
    if len(counts) > 1:
        raise UserError(
            f"{parts_folder(out)} holds parts of {' and of '.join(map(str, counts))}", "Remove those of one of them"
        )
    missing = sorted(set(range(1, counts[0] + 1)) - {part.number for part in parts})
    if missing:
        raise _unfinished(Part(missing[0], counts[0]), "is missing")


def _unfinished(part: Part, how: str) -> UserError:
    name = f"{part.number}/{part.of}"
    return UserError(f"part {name} {how}", f"Run its command (again): --part {name}; what it has done is kept")


def _merge_crops(out: Path, found: Sequence[Path]) -> MergeSummary:
    rows = 0
    with write_word_images(out) as writer, progress("merging", None, "crops") as shown:
        for path in found:
            source = ParquetSource(path)
            for key, label in source.labels():
                if not isinstance(label, str):
                    raise DamagedStore(f"{path} has no label in row {key}", "Remove it and make this part again")
                writer.write(source.read(key), label)
                shown.advance()
                rows += 1
    return MergeSummary(out, rows, rows, len(found))


def _merge_store(out: Path, found: Sequence[Path]) -> MergeSummary:
    shares = [(path, Manifest.read(path)) for path in found if (path / MANIFEST_FILE).is_file()]
    finished = {path for path, share in shares if "shards" in share.details.get(SHARE, {})}
    for path in found:
        if path not in finished:
            raise _unfinished(_part_of(path), "is not finished")
    _, first = shares[0]
    for path, share in shares:
        share.require_equal(found[0], first.identity)
        if share.details[SHARE]["of_store"] != first.details[SHARE]["of_store"]:
            raise UserError(f"{path} and {found[0]} were begun on different stores", "Make all parts again")
    whole = Manifest.begin_or_go_on(out, first.kind, first.identity)
    computed: list[Shard] = sorted(
        (shard for _, share in shares for shard in share.shards), key=lambda shard: shard.name
    )
    if whole.shards[-len(computed) :] != computed or not computed:
        before = [record.sha256 for shard in whole.shards for record in shard.files.values()]
        if before != first.details[SHARE]["of_store"]:
            raise UserError(
                f"{out} has changed since its parts were begun", f"Remove {found[0].parent}, make them again"
            )
        _take_files(out, shares)
        whole.shards += computed
        whole.identity, whole.files = first.identity, {**whole.files, **first.files}
        whole.details = {name: value for name, value in first.details.items() if name != SHARE}
        whole.files.pop(ROWS_FILE, None)
        whole.save(out)
    if whole.kind == "prompts":
        write_rows(out, whole)
    if whole.kind == "orp":
        from dptr.pipeline.photos.build_orp_bank import indexed

        indexed(out)
    return MergeSummary(out, whole.rows, sum(shard.rows for shard in computed), len(found))


def _take_files(out: Path, shares: Sequence[tuple[Path, Manifest]]) -> None:
    """Let the store have what its shares hold, each file checked on the way; the first share's hold for all."""
    with progress("merging", sum(len(share.shards) for _, share in shares), "shards") as shown:
        for path, share in shares:
            for shard in share.shards:
                for name in shard.files:
                    _take(share, path, out, name)
                shown.advance()
        path, share = shares[0]
        for name in share.files:
            _take(share, path, out, name)


def _take(share: Manifest, path: Path, out: Path, name: str) -> None:
    with atomic_path(out / name) as temporary:
        try:
            os.link(share.checked(path, name), temporary)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(path / name, temporary)
