"""What of a store is damaged or missing, and what is stored of how it was made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dptr.cache.errors import UserError
from dptr.cache.stores.manifest import Manifest, Shard
from dptr.pipeline.parts.store_in_making import Place

#: In a manifest's details: what each run of the command was given.
INPUTS = "inputs"


def remember_inputs(manifest: Manifest, paths: list[str], settings: dict[str, Any]) -> None:
    """Let a manifest say what its shards are made of; saved with the next shard.

    Args:
        manifest: of the store. paths: as they were given.
        settings: those that the identity does not hold and without which other bits might come out.
    """
    entry = {"paths": paths, "folder": str(Path.cwd()), **settings}
    known = manifest.details.get(INPUTS, [])
    if entry not in known:
        manifest.details[INPUTS] = [*known, entry]


@dataclass(frozen=True)
class Losses:
    """The damaged and missing files of one store.

    Attributes:
        folder: the store. manifest: as it was committed. files: names of the files.
    """

    folder: Path
    manifest: Manifest
    files: frozenset[str]

    @property
    def shards(self) -> Iterator[tuple[int, Shard]]:
        """Shards of which a file is lost, with their numbers."""
        return ((n, s) for n, s in enumerate(self.manifest.shards) if self.files & s.files.keys())

    @property
    def whole_catalogues(self) -> list[Path]:
        """Catalogues that are as they were committed."""
        return [self.folder / s.catalogue for s in self.manifest.shards if s.catalogue not in self.files]

    def place(self, number: int) -> Place:
        """Return where shard ``number`` comes in the store."""
        return Place(number, sum(shard.rows for shard in self.manifest.shards[:number]))

    def setting(self, name: str, otherwise: Any) -> Any:
        """Return what the newest run was given for a setting; stores of an earlier version do not hold it."""
        inputs = self.manifest.details.get(INPUTS, [])
        return inputs[-1].get(name, otherwise) if inputs else otherwise

    def inputs(self) -> list[dict[str, Any]]:
        """Return what each run of the command was given.

        Raises:
            UserError: the store does not say, or something of it is no longer there.
        """
        inputs: list[dict[str, Any]] = self.manifest.details.get(INPUTS, [])
        if not inputs:
            raise UserError(
                f"{self.folder} does not say what it was made from: an earlier dptr made it", "Make it anew"
            )
        for entry in inputs:
            for path in entry["paths"]:
                if not Path(path).exists():
                    raise UserError(
                        f"{path}, from which {self.folder} was made, is gone",
                        f"Put it back; names are as seen from {entry['folder']}",
                    )
        return inputs
