"""The manifest is the commit point of a store: a shard exists once the manifest lists it.

It also holds the store's identity, so that embeddings of different encoders are never mixed, and the hash of every
file, so that damaged data is not used for training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

from dptr.cache.errors import DamagedStore, UserError
from dptr.cache.file_names import (
    INDEX_FILE,
    MANIFEST_FILE,
    NEIGHBOURS_ARRAY,
    NEIGHBOURS_TABLE,
    QUARANTINE_FILE,
    ROWS_FILE,
)
from dptr.cache.progress import note
from dptr.cache.stores import checks
from dptr.cache.stores import checksummed as checksummed
from dptr.cache.stores.checks import FileRecord as FileRecord
from dptr.cache.stores.files import begun_anew

_LONGEST_SHOWN = 40

#: Files that can be derived again or only record past runs: a store is usable although they are damaged.
DISPENSABLE = frozenset({INDEX_FILE, NEIGHBOURS_ARRAY, NEIGHBOURS_TABLE, QUARANTINE_FILE, ROWS_FILE})

StoreKind = Literal["prompts", "orp", "image_features"]
_COMMAND_THAT_MAKES = {"prompts": "dptr embed-text", "orp": "dptr build-orp-bank", "image_features": "dptr embed-crops"}


@dataclass(frozen=True)
class Shard:
    """One committed shard: its catalogue ``<name>.parquet`` and its embeddings ``<name>.arrow``."""

    name: str
    rows: int
    files: dict[str, FileRecord]
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def catalogue(self) -> str:
        """Name of the file that describes its rows."""
        return f"{self.name}.parquet"

    @property
    def embeddings(self) -> str:
        """Name of the file that holds its embeddings."""
        return f"{self.name}.arrow"


@dataclass
class Manifest:
    """Identity, shards and store-wide files of one store.

    Attributes:
        kind: of the store.
        identity: everything that embeddings depend on (encoder, weights, template, dtype, ...).
        shards: committed shards in order; a global row number counts through them.
        files: store-wide files (``prefix.arrow``, ``index.faiss``, ...) by name.
        details: description of the contents outside the identity (counts, index parameters, measured recall).
    """

    kind: StoreKind
    identity: dict[str, Any]
    shards: list[Shard] = field(default_factory=list)
    files: dict[str, FileRecord] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows in all committed shards."""
        return sum(shard.rows for shard in self.shards)

    def every_file(self) -> dict[str, FileRecord]:
        """Return the records of all listed files by name, store-wide ones first."""
        return {**self.files, **{name: record for shard in self.shards for name, record in shard.files.items()}}

    def fingerprint(self) -> dict[str, Any]:
        """Return a short digest of identity and contents that does not depend on the encoder's name."""
        identity = {key: value for key, value in self.identity.items() if key != "encoder"}
        contents = [record.xxh3 for shard in self.shards for record in shard.files.values()]
        digest = hashlib.sha256(json.dumps([identity, contents], sort_keys=True).encode()).hexdigest()
        return {"rows": self.rows, "sha256": digest}

    def is_intact(self, folder: Path, name: str) -> bool:
        """Return whether a store-wide file is listed and its hash is right."""
        path, record = folder / name, self.files.get(name)
        return record is not None and record.problem(path) is None

    def checked(self, folder: Path, name: str) -> Path:
        """Return the path of a committed file whose hash was compared, or raise :class:`DamagedStore`."""
        record = self.every_file().get(name)
        if record is None:
            raise DamagedStore(f"{folder / MANIFEST_FILE} does not list {name}", _REPAIR)
        return checks.now(folder / name, record)

    def catalogues(self, folder: Path) -> list[Path]:
        """Return the paths of all shards' catalogues, whose hashes were compared; see :meth:`checked`.

        Raises:
            DamagedStore: a file differs from its hash.
        """
        return [checks.now(folder / shard.catalogue, shard.files[shard.catalogue]) for shard in self.shards]

    def commit_files(self, folder: Path, *names: str) -> None:
        """List the existing ones of these store-wide files, and save."""
        self.files |= {name: FileRecord.of(folder / name) for name in names if (folder / name).is_file()}
        self.save(folder)

    def withdraw_files(self, folder: Path, *names: str) -> None:
        """Remove files from the list and save, before they are replaced: so a kill leaves a consistent manifest."""
        if any(self.files.pop(name, None) for name in names):
            self.save(folder)

    @contextmanager
    def rewriting(self, folder: Path, *names: str) -> Iterator[None]:
        """Unlist files that record earlier runs while a block rewrites them; they are listed again even if it fails.

        Damaged files are removed first, with a note: they may be readable and wrong, and while they are unlisted no
        hash would show it.
        """
        for name in names:
            if name in self.files and not self.is_intact(folder, name):
                note(begun_anew(folder / name))
                (folder / name).unlink(missing_ok=True)
        self.withdraw_files(folder, *names)
        try:
            yield
        except BaseException:
            if (folder / MANIFEST_FILE).is_file():
                # Only what was committed: the rest of this manifest may be in the middle of a change.
                Manifest.load(folder, self.kind).commit_files(folder, *names)
            raise
        if self.shards or (folder / MANIFEST_FILE).is_file():
            self.commit_files(folder, *names)

    def commit_shard(self, folder: Path, shard: Shard) -> None:
        """List one more finished shard and save."""
        self.shards.append(shard)
        self.save(folder)

    def save(self, folder: Path) -> None:
        """Write ``manifest.json`` atomically; what it lists is committed from then on.

        Files and details are sorted by name, so that the order does not depend on interruptions.
        """
        value = {
            "kind": self.kind,
            "rows": self.rows,
            "identity": self.identity,
            "details": dict(sorted(self.details.items())),
            "files": _stored(dict(sorted(self.files.items()))),
        }
        shards = [{**vars(shard), "files": _stored(shard.files)} for shard in self.shards]
        checksummed.write_json(folder / MANIFEST_FILE, value, {"shards": shards})

    @classmethod
    def load(cls, folder: Path, kind: StoreKind) -> Manifest:
        """Read a store's manifest and compare the sizes of its files with it.

        Raises:
            UserError: there is no such store, or its kind or format differs.
            DamagedStore: the manifest cannot be read, or a file is missing or cut short.
        """
        if not (folder / MANIFEST_FILE).is_file():
            raise UserError(f"no {kind} store in {folder}", f"Make one with `{_COMMAND_THAT_MAKES[kind]}`")
        manifest = cls.read(folder)
        if manifest.kind != kind:
            raise UserError(f"{folder} is a store of kind {manifest.kind!r}, not {kind!r}", "Name the right folder")
        manifest._check_files(folder)
        return manifest

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a store of any kind, and no other file.

        Raises:
            UserError: another format. DamagedStore: it cannot be read.
        """
        path = folder / MANIFEST_FILE
        value = checksummed.read_json(path)
        try:
            shards = [Shard(**{**stored, "files": _records(stored["files"])}) for stored in value["shards"]]
            return cls(value["kind"], value["identity"], shards, _records(value["files"]), value["details"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DamagedStore(f"{path} is damaged: {error!r}", checksummed.RESTORE) from error

    @classmethod
    def begin_or_go_on(cls, folder: Path, kind: StoreKind, identity: dict[str, Any]) -> Manifest:
        """Return the manifest of the store in ``folder``, whose identity must be equal, or a new one.

        Raises:
            DamagedStore: a store of another identity exists; the message names the differences.
        """
        if not (folder / MANIFEST_FILE).is_file():
            return cls(kind, dict(identity))
        manifest = cls.load(folder, kind)
        manifest.require_equal(folder, identity)
        return manifest

    def require_equal(self, folder: Path, identity: dict[str, Any]) -> None:
        """Raise :class:`DamagedStore` where parts of the identity differ."""
        differing = [
            f"{name}: {_shown(self.identity.get(name))} there, {_shown(value)} now"
            for name, value in identity.items()
            # The same weights may have several names (two paths, a hub id): their hashes are compared.
            if name != "encoder" and self.identity.get(name) != value
        ]
        if differing:
            raise DamagedStore(
                f"{folder} holds a store with other settings ({'; '.join(differing)})",
                "Use the same settings, another folder with -o, or move the old store away",
            )

    def _check_files(self, folder: Path) -> None:
        """Compare presence and size of every required file: a cheap check for missing and truncated files."""
        for name, record in self.every_file().items():
            path = folder / name
            if name in DISPENSABLE:
                continue
            size = path.stat().st_size if path.is_file() else None
            if size != record.bytes:
                found = "is missing" if size is None else f"has {size} bytes, not {record.bytes}"
                raise DamagedStore(f"{path} {found}", _REPAIR)


_REPAIR = "`dptr verify --repair` computes it again from the original inputs"


def _stored(files: dict[str, FileRecord]) -> dict[str, Any]:
    return {name: vars(record) for name, record in files.items()}


def _records(stored: dict[str, dict[str, Any]]) -> dict[str, FileRecord]:
    for name in stored:
        if name != PurePath(name).name or name in ("", ".."):
            raise ValueError(f"{name!r} leads out of the store")
    return {name: FileRecord(**record) for name, record in stored.items()}


def kind_of(folder: Path) -> str | None:
    """Return which kind of store is in ``folder``; None where there is none.

    Raises:
        DamagedStore: the manifest cannot be read. UserError: it is of another format.
    """
    path = folder / MANIFEST_FILE
    return checksummed.read_json(path).get("kind") if path.is_file() else None


def require_same_encoder(one: Manifest, other: Manifest) -> None:
    """Raise :class:`DamagedStore` where two stores' embeddings come from different CLIP models."""
    if one.identity["weights"] != other.identity["weights"]:
        raise DamagedStore(
            f"the {one.kind} store was made with encoder {one.identity['encoder']} "
            f"and the {other.kind} store with {other.identity['encoder']}, whose weights differ",
            f"Make both with the same --clip (`{_COMMAND_THAT_MAKES[one.kind]}`, `{_COMMAND_THAT_MAKES[other.kind]}`)",
        )


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
