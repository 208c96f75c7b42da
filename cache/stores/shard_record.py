"""A manifest's record of a committed shard."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from dptr.cache.stores.file_record import FileRecord, file_records


@dataclass(frozen=True)
class Shard:
    """One committed shard: its catalogue ``<name>.parquet`` and its states ``<name>.arrow``."""

    name: str
    rows: int
    files: dict[str, FileRecord]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def catalogue(self) -> str:
        """Name of the file that describes its rows."""
        return f"{self.name}.parquet"

    @property
    def states(self) -> str:
        """Name of the file that holds its states."""
        return f"{self.name}.arrow"

    def stored(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        files = {name: vars(record) for name, record in self.files.items()}
        return {"name": self.name, "rows": self.rows, "files": files, "details": self.details}

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Self:
        """Return the shard that was stored.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: it is none.
        """
        shard = cls(stored["name"], stored["rows"], file_records(stored["files"]), dict(stored.get("details", {})))
        if not isinstance(shard.rows, int) or not 0 <= shard.rows < 1 << 63:
            raise ValueError("a shard has a number of rows that none can have")
        for name in (shard.catalogue, shard.states):
            _ = shard.files[name]
        return shard
