"""Filling a store, or one part of it, shard by shard.

Every part goes through all shards in order, so that numbers, first ids and rows are equal in all parts, and skips
shards of other parts and committed ones.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from dptr.cache.errors import UserError
from dptr.cache.file_names import MANIFEST_FILE, PREFIX_FILE, QUARANTINE_FILE, ROWS_FILE
from dptr.cache.stores.files import require_replaceable
from dptr.cache.stores.manifest import Manifest, Shard, StoreKind
from dptr.cache.stores.shards import remove_unfinished, shard_name
from dptr.pipeline.executors.executor import WHOLE, Executor, Part, Worker

#: Key of a manifest's details: inputs of each run of the command.
INPUTS = "inputs"
#: Key of a part's manifest: its number, the total, and the inputs.
SHARE = "share"
#: Key of a part's manifest: a digest of each shard's inputs.
MADE_OF = "made_of"
_CARRIED_OVER = (PREFIX_FILE, QUARANTINE_FILE)


class Place(NamedTuple):
    """A shard's number in its store, and the id of its first row."""

    number: int
    first_id: int


@dataclass(frozen=True, kw_only=True)
class StoreSummary:
    """Result of a run.

    Attributes:
        out: the folder that it wrote. rows: in it now. computed: those that this run made.
        quarantined: inputs rejected.
        seconds: the whole run without loading CLIP. load_seconds: loading CLIP.
    """

    out: Path
    rows: int
    computed: int
    quarantined: int
    seconds: float
    load_seconds: float


class Group(NamedTuple):
    """Rows that are never split: their number, their identity (for a digest), and the worker's input."""

    rows: int
    inputs: Sequence[str]
    payload: Any


class ShardToMake(NamedTuple):
    """A shard's place, and the payloads of its groups, possibly read lazily."""

    place: Place
    payloads: Iterable[Any]


@dataclass(frozen=True)
class Repair(Part):
    """The damaged shards of a store, to be made in another folder, ``out``.

    Attributes:
        store: the store's folder. manifest: of it. lost: numbers of the damaged shards, in order.
    """

    store: Path = Path()
    manifest: Manifest = field(default_factory=lambda: Manifest("prompts", {}))
    lost: tuple[int, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the result is a complete store, to be indexed."""
        return False

    def beside(self, out: Path, ending: str = "") -> Path:
        """Return the folder in which shards are made."""
        return out

    @property
    def whole(self) -> list[Shard]:
        """Shards that are not damaged."""
        return [shard for number, shard in enumerate(self.manifest.shards) if number not in self.lost]


def place_of(manifest: Manifest, number: int) -> Place:
    """Return the place of shard ``number`` in its store."""
    return Place(number, sum(shard.rows for shard in manifest.shards[:number]))


def remember_inputs(manifest: Manifest, paths: list[str], settings: dict[str, Any]) -> None:
    """Record the inputs of shards in a manifest; saved with the next shard.

    Args:
        manifest: of the store. paths: as they were given.
        settings: those outside the identity on which bits depend.
    """
    entry = {"paths": paths, "folder": str(Path.cwd()), **settings}
    known = manifest.details.get(INPUTS, [])
    if entry not in known:
        manifest.details[INPUTS] = [*known, entry]


class StoreInMaking:
    """A store, or one part of it, while it is filled.

    Args:
        out: the whole store's folder. kind: of the store. identity: of its embeddings. part: to make.

    Attributes:
        folder: where shards are written. manifest: where they are committed.
        before: the shards that the whole store has already.

    Raises:
        DamagedStore: there is a store of another identity.
        UserError: the store has grown since the part was begun, or ``out`` is a run's or a model's folder.
    """

    def __init__(self, out: Path, kind: StoreKind, identity: dict[str, Any], part: Part = WHOLE) -> None:
        whole = Manifest.begin_or_go_on(out, kind, identity)
        if not (out / MANIFEST_FILE).is_file():
            require_replaceable(out)
        self.out, self.part, self.folder = out, part, part.beside(out)
        self.before = replace(whole, shards=list(whole.shards))
        self._is_share = part.of > 1
        self.manifest = _share_of(whole, out, self.folder, kind, identity) if self._is_share else whole
        self._committed = {shard.name: shard for shard in self.manifest.shards}
        self._number, self._rows = len(whole.shards), whole.rows
        if isinstance(part, Repair):
            part.manifest.require_equal(part.store, identity)
            self._rows += sum(shard.rows for shard in part.whole)
        self._made_of: dict[str, str] = {}

    @property
    def catalogues(self) -> list[Path]:
        """Catalogues of the shards whose inputs are not to be taken again."""
        known = self.before.catalogues(self.out)
        if isinstance(self.part, Repair):
            known += replace(self.part.manifest, shards=self.part.whole).catalogues(self.part.store)
        return known

    @property
    def rows(self) -> int:
        """Rows of all shards so far, including those of other parts."""
        return self._rows

    def fill(self, executor: Executor, worker: Worker[Shard], groups: Iterable[Group], rows: int | None) -> None:
        """Make this part's shards and commit them in order.

        Args:
            executor: carries out the work. worker: makes one shard. groups: all that the store lacks, in order.
            rows: of a shard, or a few more, as groups are never parted; None: each group is a shard.
        """
        if isinstance(self.part, Repair):
            to_make = self._shards_to_repair(self.part, groups, rows)
        else:
            to_make = self._shards_to_make(groups, rows)
        for shard in executor.in_order(worker, to_make):
            self.commit(shard)
        remove_unfinished(self.folder)

    def _shards_to_make(self, groups: Iterable[Group], rows: int | None) -> Iterator[ShardToMake]:
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

    def _shards_to_repair(self, part: Repair, groups: Iterable[Group], rows: int | None) -> Iterator[ShardToMake]:
        groups = iter(groups)
        for number in part.lost:
            if shard_name(number) not in self._committed and (first := next(groups, None)) is not None:
                taken: list[Group] = []
                its_rows = None if rows is None else part.manifest.shards[number].rows
                yield ShardToMake(place_of(part.manifest, number), _of_one_shard(first, groups, its_rows, taken))
                self._rows += sum(group.rows for group in taken)

    def _require_same_inputs(self, name: str, digest: str) -> None:
        """Check that a shard that an earlier run of this part committed has the same inputs."""
        earlier = self._committed.get(name)
        if earlier is not None and self._is_share and earlier.details.get(MADE_OF) != digest:
            raise UserError(
                f"{self.folder} was started with other inputs or settings: {name} differs",
                f"Remove {self.folder}, then run the same command",
            )

    def commit(self, shard: Shard) -> None:
        """List a shard that was written."""
        # It is outdated; if it stayed listed, a kill while it is rewritten would look like damage.
        self.manifest.files.pop(ROWS_FILE, None)
        if self._is_share:
            shard = replace(shard, details={**shard.details, MADE_OF: self._made_of[shard.name]})
        self.manifest.commit_shard(self.folder, shard)

    def finish(self, **details: Any) -> None:
        """Record the totals of the store; a part is then ready to be merged."""
        self.manifest.details |= details
        if self._is_share:
            self.manifest.details[SHARE] = {
                "part": self.part.number,
                "of": self.part.of,
                "shards": self._number,
                "rows": self._rows,
                "inputs": hashlib.sha256("".join(self._made_of.values()).encode()).hexdigest(),
                "of_store": file_hashes(self.before),
            }
            self.manifest.save(self.folder)


def _of_one_shard(first: Group, groups: Iterator[Group], rows: int | None, taken: list[Group]) -> Iterator[Any]:
    """Yield the payloads of a shard's groups, and append the groups without payloads to ``taken``."""
    group: Group | None = first
    count = 0
    while group is not None:
        taken.append(group._replace(payload=None))
        count += group.rows
        yield group.payload
        group = next(groups, None) if rows is not None and count < rows else None


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
            f"{out} has changed since part {folder} was started",
            f"Remove {folder.parent} and make all parts again; nothing of {out} is lost",
        )
    # Unfinished again, because its inputs may differ now.
    share.details[SHARE] = {"of_store": of_store}
    return share


def file_hashes(manifest: Manifest) -> list[str]:
    """Return the shards of a store, on which its parts depend."""
    return [record.xxh3 for shard in manifest.shards for record in shard.files.values()]
