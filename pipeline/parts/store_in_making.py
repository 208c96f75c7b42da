"""A store while it is filled, shard by shard, or the share of it that one part makes.

Whoever fills it goes through all shards in their order, so that each has the same number, first id and rows whoever
makes it, and leaves out those that are another part's or are committed already.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from dptr.cache.errors import UserError
from dptr.cache.file_names import MANIFEST_FILE, PHOTOS_FILE, PREFIX_FILE, QUARANTINE_FILE, ROWS_FILE
from dptr.cache.stores.files import require_replaceable
from dptr.cache.stores.manifest import Manifest, Shard, StoreKind
from dptr.cache.stores.shards import remove_unfinished, shard_name
from dptr.pipeline.parts.executors import Executor, Worker
from dptr.pipeline.parts.part import WHOLE, Part

#: In the manifest of a share: which it is, and of what.
SHARE = "share"
#: In a share's shards: a digest of what each was made of.
MADE_OF = "made_of"
_CARRIED_OVER = (PREFIX_FILE, QUARANTINE_FILE, PHOTOS_FILE)


@dataclass(frozen=True)
class Place:
    """Where a shard comes in its store: its number, and the id of its first row."""

    number: int
    first_id: int


class Group(NamedTuple):
    """Rows that are never parted: how many, what they are (for a digest), and what a worker makes them of."""

    rows: int
    inputs: Sequence[str]
    payload: Any


class ShardToMake(NamedTuple):
    """One shard's place, and the payloads of its groups, which may come as they are read."""

    place: Place
    payloads: Iterable[Any]


class StoreInMaking:
    """A store, or one part's share of it.

    Args:
        out: the whole store's folder. kind: of the store. identity: of its states. part: which share to make.

    Attributes:
        folder: where shards are written. manifest: where they are committed.
        before: the shards that the whole store has already.

    Raises:
        DamagedStore: there is a store of another identity.
        UserError: the store has grown since the share was begun, or ``out`` is a run's or a model's folder.
    """

    def __init__(self, out: Path, kind: StoreKind, identity: dict[str, Any], part: Part = WHOLE) -> None:
        whole = Manifest.begin_or_go_on(out, kind, identity)
        if not (out / MANIFEST_FILE).is_file():
            require_replaceable(out / QUARANTINE_FILE)
        self.out, self.part, self.folder = out, part, part.beside(out)
        self.before = replace(whole, shards=list(whole.shards))
        self.manifest = whole if part.is_whole else _share_of(whole, out, self.folder, kind, identity)
        self._committed = {shard.name: shard for shard in self.manifest.shards}
        self._number, self._rows = len(whole.shards), whole.rows
        self._made_of: dict[str, str] = {}

    @property
    def catalogues(self) -> list[Path]:
        """Catalogues of the shards that the whole store has already."""
        return self.before.catalogues(self.out)

    @property
    def rows(self) -> int:
        """Rows of all shards that were gone through, whoever makes them."""
        return self._rows

    def fill(self, executor: Executor, worker: Worker[Shard], groups: Iterable[Group], rows: int) -> None:
        """Make the shards that are this part's, of ``rows`` rows or a few more, and commit each in its turn."""
        for shard in executor.in_order(worker, self._shards_to_make(groups, rows)):
            self.commit(shard)
        remove_unfinished(self.folder)

    def _shards_to_make(self, groups: Iterable[Group], rows: int) -> Iterator[ShardToMake]:
        groups = iter(groups)
        for first in groups:
            taken: list[Group] = []
            payloads = _of_one_shard(first, groups, rows, taken)
            name = shard_name(self._number)
            if self.part.has(self._number) and name not in self._committed:
                yield ShardToMake(Place(self._number, self._rows), payloads)
            for _ in payloads:
                pass  # another part's, or made already
            digest = hashlib.sha256("\0".join(text for group in taken for text in group.inputs).encode()).hexdigest()
            self._require_same_inputs(name, digest)
            self._made_of[name] = digest
            self._number, self._rows = self._number + 1, self._rows + sum(group.rows for group in taken)

    def _require_same_inputs(self, name: str, digest: str) -> None:
        """Check that a shard of the share that an earlier run committed is made of what this run would make it of."""
        earlier = self._committed.get(name)
        if earlier is not None and not self.part.is_whole and earlier.details.get(MADE_OF) != digest:
            raise UserError(
                f"{self.folder} was begun with other inputs or settings: {name} differs",
                f"Remove {self.folder}, then run the same command",
            )

    def commit(self, shard: Shard) -> None:
        """List a shard that was written."""
        # It no longer describes the store; leaving it listed would let a kill while it is rewritten damage it.
        self.manifest.files.pop(ROWS_FILE, None)
        if not self.part.is_whole:
            shard = replace(shard, details={**shard.details, MADE_OF: self._made_of[shard.name]})
        self.manifest.commit_shard(self.folder, shard)

    def finish(self, **details: Any) -> None:
        """Note what the store came to; a share then waits to be merged."""
        self.manifest.details |= details
        if not self.part.is_whole:
            self.manifest.details[SHARE] = {
                "part": self.part.number,
                "of": self.part.of,
                "shards": self._number,
                "rows": self._rows,
                "inputs": hashlib.sha256("".join(self._made_of.values()).encode()).hexdigest(),
                "of_store": file_hashes(self.before),
            }
            self.manifest.save(self.folder)


def _of_one_shard(first: Group, groups: Iterator[Group], rows: int, taken: list[Group]) -> Iterator[Any]:
    """Yield the payloads of a shard's groups as they come, and note the groups, without payloads, in ``taken``."""
    group: Group | None = first
    count = 0
    while group is not None:
        taken.append(group._replace(payload=None))
        count += group.rows
        yield group.payload
        group = next(groups, None) if count < rows else None


def _share_of(whole: Manifest, out: Path, folder: Path, kind: StoreKind, identity: dict[str, Any]) -> Manifest:
    """Return the manifest of a share of a store, which starts from what the store holds besides its shards."""
    share = Manifest.begin_or_go_on(folder, kind, identity)
    share.identity |= whole.identity
    of_store = file_hashes(whole)
    known = share.details.get(SHARE)
    if known is None:
        share.details |= whole.details
        for name in _CARRIED_OVER:
            if name in whole.files:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(whole.checked(out, name), folder / name)
                share.files[name] = whole.files[name]
    elif known["of_store"] != of_store:
        raise UserError(
            f"{out} has changed since its share {folder} was begun",
            f"Remove {folder.parent} and make all parts again; nothing of {out} is lost",
        )
    # Not finished, if it was: its inputs may be others now.
    share.details[SHARE] = {"of_store": of_store}
    return share


def file_hashes(manifest: Manifest) -> list[str]:
    """Return what of a store its shares depend on: which shards it has."""
    return [record.sha256 for shard in manifest.shards for record in shard.files.values()]
