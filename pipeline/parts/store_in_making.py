"""A store while it is filled, shard by shard, or the share of it that one part makes.

Whoever fills it goes through all shards in their order, so that each has the same number, first id and rows whoever
makes it, and leaves out those that are another part's or are committed already.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dptr.cache.errors import UserError
from dptr.cache.file_names import PHOTOS_FILE, PREFIX_FILE, QUARANTINE_FILE, ROWS_FILE
from dptr.cache.stores.manifest import Manifest, StoreKind
from dptr.cache.stores.shard_record import Shard
from dptr.cache.stores.shards import shard_name
from dptr.pipeline.parts.part import WHOLE, Part

#: In the manifest of a share: which it is, and of what.
SHARE = "share"
_CARRIED_OVER = (PREFIX_FILE, QUARANTINE_FILE, PHOTOS_FILE)


@dataclass(frozen=True)
class Place:
    """Where a shard comes in its store: its number, and the id of its first row."""

    number: int
    first_id: int


class StoreInMaking:
    """A store, or one part's share of it.

    Args:
        out: the whole store's folder. kind: of the store. identity: of its states. part: which share to make.

    Attributes:
        folder: where shards are written. manifest: where they are committed.
        before: the shards that the whole store has already.

    Raises:
        DamagedStore: there is a store of another identity.
        UserError: the store has grown since the share was begun.
    """

    def __init__(self, out: Path, kind: StoreKind, identity: dict[str, Any], part: Part = WHOLE) -> None:
        whole = Manifest.begin_or_go_on(out, kind, identity)
        self.out, self.part, self.folder = out, part, part.beside(out)
        self.before = replace(whole, shards=list(whole.shards))
        self.manifest = whole if part.is_whole else _share_of(whole, out, self.folder, kind, identity)
        self._committed = {shard.name for shard in self.manifest.shards}
        self._number, self._rows = len(whole.shards), whole.rows

    @property
    def catalogues(self) -> list[Path]:
        """Catalogues of the shards that the whole store has already."""
        return self.before.catalogues(self.out)

    @property
    def rows(self) -> int:
        """Rows of all shards that were gone through, whoever makes them."""
        return self._rows

    @property
    def wants_next(self) -> bool:
        """Whether the next shard is to be made."""
        return self.part.has(self._number) and shard_name(self._number) not in self._committed

    def pass_on(self, rows: int) -> Place:
        """Go on to the next shard; return the place of the one that was just gone through, of ``rows`` rows."""
        place = Place(self._number, self._rows)
        self._number, self._rows = self._number + 1, self._rows + rows
        return place

    @property
    def place(self) -> Place:
        """Where the next shard comes."""
        return Place(self._number, self._rows)

    def commit(self, shard: Shard) -> None:
        """List a shard that was written."""
        # It no longer describes the store; leaving it listed would let a kill while it is rewritten damage it.
        self.manifest.files.pop(ROWS_FILE, None)
        self.manifest.commit_shard(self.folder, shard)

    def finish(self, **details: Any) -> None:
        """Note what the store came to; a share then waits to be merged."""
        self.manifest.details |= details
        if not self.part.is_whole:
            share = {
                "part": self.part.number,
                "of": self.part.of,
                "shards": self._number,
                "of_store": _store(self.before),
            }
            self.manifest.details[SHARE] = share
            self.manifest.save(self.folder)


def _share_of(whole: Manifest, out: Path, folder: Path, kind: StoreKind, identity: dict[str, Any]) -> Manifest:
    """Return the manifest of a share of a store, which starts from what the store holds besides its shards."""
    share = Manifest.begin_or_go_on(folder, kind, identity)
    share.identity |= whole.identity
    known = share.details.get(SHARE)
    if known is None:
        share.details |= {**whole.details, SHARE: {"of_store": _store(whole)}}
        for name in _CARRIED_OVER:
            if name in whole.files:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(whole.checked(out, name), folder / name)
                share.files[name] = whole.files[name]
    elif known["of_store"] != _store(whole):
        raise UserError(
            f"{out} has changed since its share {folder} was begun",
            f"Remove {folder.parent} and make all parts again; nothing of {out} is lost",
        )
    return share


def _store(manifest: Manifest) -> list[str]:
    """Return what of a store its shares hang on: which shards it has."""
    return [record.sha256 for shard in manifest.shards for record in shard.files.values()]
