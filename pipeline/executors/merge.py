"""`dptr merge`: the parts of a store become one store, with the same bytes as without parts.

Parts are joined if their inputs and totals are equal and each exists once. They are removed last.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import MANIFEST_FILE, ROWS_FILE
from dptr.cache.progress import progress
from dptr.cache.stores.files import link_or_copy, temporary_beside
from dptr.cache.stores.lock import locked
from dptr.cache.stores.manifest import Manifest
from dptr.cache.stores.prompt_rows import write_rows
from dptr.pipeline.executors.executor import Part, parts_folder
from dptr.pipeline.executors.store_builder import MADE_OF, SHARE, file_hashes


@dataclass(frozen=True)
class MergeSummary:
    """Result of merging: ``rows`` of ``out``, of which ``computed`` are from its parts."""

    out: Path
    rows: int
    computed: int
    parts: int


def merge(out: Path) -> MergeSummary:
    """Commit the parts in the folder beside ``out`` and remove them; a store without parts stays unchanged.

    Raises:
        UserError: there is neither part nor store; a part is missing, not finished, being written, or does not belong
            to the others.
        DamagedStore: one is damaged.
    """
    folder = parts_folder(out)
    found = sorted(path for path in folder.glob("*-of-*") if path.is_dir() and path.name[0] != ".")
    if not found and (out / MANIFEST_FILE).is_file():
        return MergeSummary(out, Manifest.read(out).rows, 0, 0)  # also after a merge that was killed while it removed
    if not found:
        raise UserError(f"no parts in {folder}", f"Run the command that makes {out} with --part 1/2, then 2/2")
    with ExitStack() as locks:
        for path in (*found, out):
            locks.enter_context(locked(path))
        summary = _merge(out, found)
    # All at once: remaining parts could not be distinguished from unfinished ones.
    gone = temporary_beside(folder)
    folder.rename(gone)
    shutil.rmtree(gone)
    return summary


def _merge(out: Path, found: Sequence[Path]) -> MergeSummary:
    parts, work = _of_one_work(found)
    first = parts[0]
    shards = [shard for part in parts for shard in part.shards]
    computed = [
        replace(shard, details={key: value for key, value in shard.details.items() if key != MADE_OF})
        for shard in sorted(shards, key=lambda shard: (len(shard.name), shard.name))
    ]
    whole = Manifest.begin_or_go_on(out, first.kind, first.identity)
    before = len(work["of_store"]) // 2  # each shard has two files
    if whole.shards[before:] != computed or not computed:
        if file_hashes(whole) != work["of_store"]:
            raise UserError(
                f"{out} has changed since its parts were started", f"Remove {found[0].parent}, make them again"
            )
        _take_files(out, found, parts)
        whole.shards += computed
        if whole.rows != work["rows"]:
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


def _of_one_work(found: Sequence[Path]) -> tuple[list[Manifest], dict[str, Any]]:
    """Return the manifests of finished, distinct parts of equal inputs, and these inputs."""
    names = {path.name for path in found}
    total = int(found[0].name.partition("-of-")[2])
    parts = [Part(number, total) for number in range(1, total + 1)]
    for part in parts:
        if str(part) not in names:
            raise _unfinished(part, "is missing")
    if len(names) > total:
        raise UserError(f"{found[0].parent} holds parts of {total} and of others", "Remove those that are wrong")
    manifests: list[Manifest] = []
    work: dict[str, Any] = {}
    for path, part in zip(found, parts, strict=True):
        share = Manifest.read(path).details.get(SHARE, {}) if (path / MANIFEST_FILE).is_file() else {}
        if "inputs" not in share:
            raise _unfinished(part, "is not finished")
        if (share["part"], share["of"]) != (part.number, total):
            raise UserError(
                f"{path} is part {share['part']}/{share['of']} under another name",
                f"Remove it, then make it: --part {part.number}/{total}",
            )
        manifests.append(Manifest.read(path))
        manifests[-1].require_equal(found[0], manifests[0].identity)
        work = work or {**share, "part": 0}
        if {**share, "part": 0} != work:
            raise UserError(
                f"{path} and {found[0]} were made from other inputs, with other settings, or for other stores",
                "Remove the one that is wrong and make it again; nothing was merged",
            )
    return manifests, work


def _unfinished(part: Part, how: str) -> UserError:
    name = f"{part.number}/{part.of}"
    return UserError(f"part {name} {how}", f"Rerun its command with --part {name}; it resumes")


def _take_files(out: Path, found: Sequence[Path], parts: Sequence[Manifest]) -> None:
    """Move the parts' files into the store after checking them; shared files come from the first part."""
    with progress("merging", sum(len(part.shards) for part in parts), "shards") as shown:
        for path, part in zip(found, parts, strict=True):
            for shard in part.shards:
                for name in shard.files:
                    link_or_copy(part.checked(path, name), out / name)
                shown.advance()
        for name in parts[0].files:
            link_or_copy(parts[0].checked(found[0], name), out / name)
