"""`dptr merge`: the parts of a store, or of rendered crops, become one, to the same bytes as without parts.

Parts are joined where all say the same of their inputs and of what all parts come to, and each shard is there once.
They are removed last, behind a file that says that they are merged: a merge that was killed can be run again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dptr.cache.crops.parquet_form import ParquetSource
from dptr.cache.crops.writer import write_word_images
from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import MANIFEST_FILE, ROWS_FILE
from dptr.cache.progress import progress
from dptr.cache.stores import checks
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.files import link_or_copy, temporary_beside
from dptr.cache.stores.lock import locked, locked_file
from dptr.cache.stores.manifest import FileRecord, Manifest
from dptr.cache.stores.prompt_rows import write_rows
from dptr.cache.stores.shards import shard_name
from dptr.pipeline.executors.part import Part, parts_folder
from dptr.pipeline.executors.store_builder import MADE_OF, SHARE, file_hashes

_CROPS = ".parquet"
_MERGED = "merged.json"


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
        UserError: there are none; one is missing, not finished, written just now, or does not belong to the others.
        DamagedStore: one is damaged.
    """
    folder = parts_folder(out)
    if not (folder / _MERGED).is_file():
        found = sorted(path for path in folder.glob("*-of-*") if path.suffix in ("", _CROPS) and path.name[0] != ".")
        if not found:
            raise UserError(f"no parts in {folder}", f"Run the command that makes {out} with --part 1/2, then 2/2")
        crops = all(path.suffix == _CROPS for path in found)
        with ExitStack() as locks:
            for path in found:
                locks.enter_context((locked_file if crops else locked)(path))
            if not crops:
                locks.enter_context(locked(out))
            summary = (_merge_crops if crops else _merge_store)(out, found)
            checksummed.write_json(folder / _MERGED, {**asdict(summary), "out": str(out)})
    summary = _merged_before(out, folder)
    for path in folder.iterdir():
        if path.name != _MERGED:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    # At once: what says that they are merged, and the folder.
    gone = temporary_beside(folder)
    folder.rename(gone)
    shutil.rmtree(gone)
    return summary


def _merged_before(out: Path, folder: Path) -> MergeSummary:
    told = checksummed.read_json(folder / _MERGED)
    return MergeSummary(out, told["rows"], told["computed"], told["parts"])


def describe_crops(crops: Path, part: Part, inputs: str, total: int) -> None:
    """Say, beside a part's rendered crops, that they are finished, which part of what they are, and their hash.

    Args:
        crops: the Parquet file. part: which part it is. inputs: digest of all that the crops of all parts depend on.
        total: crops of all parts.
    """
    share = {"part": part.number, "of": part.of, "inputs": inputs, "rows": total}
    checksummed.write_json(crops.with_suffix(".json"), {SHARE: share, "file": vars(FileRecord.of(crops))})


def described_crops(crops: Path) -> dict[str, Any] | None:
    """Return what :func:`describe_crops` said of a file; None where it did not, so that the part is not finished.

    Raises:
        DamagedStore: the file has changed since.
    """
    description = crops.with_suffix(".json")
    if not description.is_file():
        return None
    told = checksummed.read_json(description)
    checks.now(crops, FileRecord(**told["file"]))
    return dict(told[SHARE])


def _part_of(path: Path) -> Part:
    number, _, of = path.name.removesuffix(_CROPS).partition("-of-")
    return Part.named(f"{int(number)}/{of}")


def _unfinished(part: Part, how: str) -> UserError:
    name = f"{part.number}/{part.of}"
    return UserError(f"part {name} {how}", f"Rerun its command with --part {name}; it resumes")


def _require_one_work(found: Sequence[Path], shares: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Check that parts are all of one work, each once and finished; return what all of them say."""
    parts = [_part_of(path) for path in found]
    counts = sorted({part.of for part in parts})
    if len(counts) > 1:
        raise UserError(
            f"{found[0].parent} holds parts of {' and of '.join(map(str, counts))}", "Remove those of one of them"
        )
    for number in range(1, counts[0] + 1):
        if number not in {part.number for part in parts}:
            raise _unfinished(Part(number, counts[0]), "is missing")
    for path, part, share in zip(found, parts, shares, strict=True):
        if share is None or "inputs" not in share:
            raise _unfinished(part, "is not finished")
        if (share["part"], share["of"]) != (part.number, part.of):
            told = f"{path} is part {share['part']}/{share['of']} under another name"
            raise UserError(told, f"Remove it, then make it: --part {part.number}/{part.of}")
    alike = [{**share, "part": 0} for share in shares if share is not None]
    for path, one in zip(found, alike, strict=True):
        if one.get("of_store") != alike[0].get("of_store"):
            raise UserError(f"{path} and {found[0]} belong to different stores", "Make all parts again")
        if one != alike[0]:
            raise UserError(
                f"{path} and {found[0]} were made from other inputs, or with other settings",
                "Remove the one that is wrong and make it again; nothing was merged",
            )
    return alike[0]


def _merge_crops(out: Path, found: Sequence[Path]) -> MergeSummary:
    total = _require_one_work(found, [described_crops(path) for path in found])["rows"]
    rows = 0
    with write_word_images(out) as writer, progress("merging", total, "crops") as shown:
        for path in found:
            source = ParquetSource(path)
            for key, label in source.labels():
                if not isinstance(label, str):
                    raise DamagedStore(f"{path} has no label in row {key}", "Remove it and make this part again")
                writer.write(source.read(key), label)
                shown.advance()
                rows += 1
        if rows != total:
            raise DamagedStore(f"{found[0].parent} holds {rows} crops, not {total}", "Remove it, make all parts again")
    return MergeSummary(out, rows, rows, len(found))


def _merge_store(out: Path, found: Sequence[Path]) -> MergeSummary:
    shares = [Manifest.read(path) if (path / MANIFEST_FILE).is_file() else None for path in found]
    told = _require_one_work(found, [None if share is None else share.details.get(SHARE) for share in shares])
    parts = [(path, share) for path, share in zip(found, shares, strict=True) if share is not None]
    _, first = parts[0]
    before = len(told["of_store"]) // 2  # each shard has two files
    for path, share in parts:
        share.require_equal(found[0], first.identity)
        wanted = [shard_name(n) for n in range(before, told["shards"]) if _part_of(path).has(n)]
        if [shard.name for shard in share.shards] != wanted:
            raise UserError(f"{path} holds other shards than its part should", "Remove it and make it again")
    whole = Manifest.begin_or_go_on(out, first.kind, first.identity)
    computed = sorted(
        (shard for _, share in parts for shard in share.shards), key=lambda one: (len(one.name), one.name)
    )
    computed = [
        replace(shard, details={key: value for key, value in shard.details.items() if key != MADE_OF})
        for shard in computed
    ]
    if whole.shards[before:] != computed or not computed:
        if file_hashes(whole) != told["of_store"]:
            raise UserError(
                f"{out} has changed since its parts were started", f"Remove {found[0].parent}, make them again"
            )
        _take_files(out, parts)
        whole.shards += computed
        if whole.rows != told["rows"]:
            raise DamagedStore(
                f"the parts in {found[0].parent} do not fit together", "Remove them and make all parts again"
            )
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


def _take_files(out: Path, parts: Sequence[tuple[Path, Manifest]]) -> None:
    """Let the store have what its parts hold, each file checked on the way; the first part's hold for all."""
    with progress("merging", sum(len(share.shards) for _, share in parts), "shards") as shown:
        for path, share in parts:
            for shard in share.shards:
                for name in shard.files:
                    _take(share, path, out, name)
                shown.advance()
        path, share = parts[0]
        for name in share.files:
            _take(share, path, out, name)


def _take(share: Manifest, path: Path, out: Path, name: str) -> None:
    link_or_copy(share.checked(path, name), out / name)
